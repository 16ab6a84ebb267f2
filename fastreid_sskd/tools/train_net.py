r"""Train, adapt, resume or evaluate: SSKD configs and plain fast-reid ones.

    tools/train_net.py --config-file configs/sskd_m2d.yml
    tools/train_net.py --config-file configs/sskd_m2d.yml --resume
    tools/train_net.py --config-file configs/sskd_m2d.yml --num-gpus 4    # as many processes here
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --rdzv-id sskd \
        tools/train_net.py --config-file configs/sskd_m2d.yml             # on each of two machines
    tools/train_net.py --config-file configs/sskd_m2d.yml SSKD.SOURCE.WEIGHTS "['a.pth', 'b.pth', 'c.pth']"
    tools/train_net.py --config-file configs/sskd_m2d.yml --eval-only \
        MODEL.WEIGHTS runs/sskd_m2d/model_final.pth

Features of a folder of images: tools/predict.py.

Exit status:
    0  done
    1  failed, with Python's traceback
    2  refused, in one message: the command line, a config or data that cannot work, a folder that is in use
       or cannot be written into, a checkpoint of another config
    3  stopped because the pseudo-labels cannot be trained on; checkpoints are kept
    4  stopped by SIGTERM or SIGINT after saving; --resume continues from there
"""

import argparse
import os
import shlex
import sys
from urllib.parse import urlsplit

from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.engine import default_argument_parser, evaluate, load_config
from fastreid_sskd.engine.defaults import begin, check_device, read_config
from fastreid_sskd.engine.files import output_folder
from fastreid_sskd.engine.pipeline import check_evaluation, check_run, check_trained, train
from fastreid_sskd.processes import join, launch
from fastreid_sskd.processes.distributed import joined_from_outside
from fastreid_sskd.refusals import checking, exit_status


def command_line() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = default_argument_parser()
    for gone in ("--predict", "--features"):
        parser.add_argument(gone, help=argparse.SUPPRESS)
    return parser.parse_args()


@checking()
def prepare(args) -> tuple[str, int | None]:
    """The device, and the status of the processes that were started in place of this one, if any were."""
    if args.predict:
        raise ValueError(
            "--predict is a command of its own: tools/predict.py --config-file FILE --images FOLDER "
            "--output features.npz MODEL.WEIGHTS FILE"
        )
    device = load_config(args.config_file, args.opts).MODEL.DEVICE
    check_device(device)
    if joined_from_outside():
        return device, None
    if args.num_machines > 1:
        raise ValueError(
            "--num-machines: several machines are started by torchrun, by this command on "
            f"each:\n{torchrun(args)}"
        )
    return device, None if args.num_gpus == 1 else launch(args.num_gpus)


def torchrun(args) -> str:
    """The command that does what --num-machines asks for."""
    machine_0 = urlsplit(args.dist_url).netloc
    if machine_0.startswith(("127.0.0.1", "localhost")):  # the default
        machine_0 = ""
    command = [
        "torchrun",
        f"--nnodes={args.num_machines}",
        f"--nproc-per-node={args.num_gpus}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={machine_0 or 'HOST_OF_ONE_OF_THEM:29500'}",
        "--rdzv-id=sskd",
        # the program of `fastreid-sskd train` is followed by its command
        *([sys.argv[0]] if os.path.isfile(sys.argv[0]) else sys.argv[0].rsplit(" ", 1)),
        "--config-file",
        args.config_file,
        *(["--resume"] if args.resume else []),
        *(["--eval-only"] if args.eval_only else []),
        *args.opts,
    ]
    return shlex.join(command)


@exit_status
def main(args: argparse.Namespace | None = None) -> int:
    """Run the command, in this process or in several; the exit status."""
    args = args or command_line()
    device, status = prepare(args)
    if status is not None:
        return status
    with join(device):
        return one_process(args)


def one_process(args) -> int:
    """Train or evaluate, alone or as one of several processes."""
    cfg = read_config(args)
    if args.eval_only:
        check_trained(cfg)
        check_evaluation(cfg)
        begin(cfg, args)
        with checking(FloatingPointError):
            evaluate(cfg)
    else:
        check_run(cfg, args.resume)
        try:
            with output_folder(cfg.OUTPUT_DIR):
                begin(cfg, args)
                train(cfg, args.resume)
        except PseudoLabelError as error:
            raise PseudoLabelError(
                f"training stopped, its checkpoints are kept in {cfg.OUTPUT_DIR}: {error}"
            ) from error
    return 0
