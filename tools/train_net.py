#!/usr/bin/env python3
r"""Train, adapt, resume, evaluate or predict: SSKD configs and plain fast-reid ones.

    tools/train_net.py --config-file configs/sskd_m2d.yml
    tools/train_net.py --config-file configs/sskd_m2d.yml --resume
    tools/train_net.py --config-file configs/sskd_m2d.yml --num-gpus 4      # as many processes; torchrun works too
    tools/train_net.py --config-file configs/sskd_m2d.yml SSKD.SOURCE.WEIGHTS "['a.pth', 'b.pth', 'c.pth']"
    tools/train_net.py --config-file configs/sskd_m2d.yml --eval-only MODEL.WEIGHTS runs/sskd_m2d/model_final.pth
    tools/train_net.py --config-file configs/sskd_m2d.yml --predict CROPS --features crops.npz \
        MODEL.WEIGHTS runs/sskd_m2d/model_final.pth

Exit status:
    0  done
    1  failed, with Python's traceback
    2  refused, in one message: the command line, a config or data that cannot work, a folder that another run writes into or
       that cannot be written into, a checkpoint of another config
    3  stopped because the pseudo-labels cannot be trained on; checkpoints are kept
    4  stopped by SIGTERM or SIGINT after saving; --resume goes on from there
"""
import os
import sys

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.data.datasets import image_paths
from fastreid_sskd.engine import default_argument_parser, evaluate, load_config, predict
from fastreid_sskd.engine.defaults import begin, check_device, read_config
from fastreid_sskd.engine.lock import output_folder
from fastreid_sskd.engine.pipeline import check_evaluation, check_run, check_trained, train
from fastreid_sskd.export.feature_files import check_feature_file, write_features
from fastreid_sskd.processes import join, launch
from fastreid_sskd.processes.group import joined_from_outside
from fastreid_sskd.refusals import checking, exit_status


@checking()
def prepare(args) -> tuple[str, int | None]:
    """The device, and the status of the processes that were started in place of this one, if any were."""
    cfg = load_config(args.config_file, args.opts)
    device = cfg.MODEL.DEVICE
    check_device(device)
    if args.predict:
        check_feature_file(args.features, image_paths(args.predict), [args.config_file, cfg.MODEL.WEIGHTS])
        if args.eval_only or args.resume:
            raise ValueError("--predict neither trains nor evaluates: leave out --eval-only and --resume")
    several = args.num_gpus * args.num_machines > 1
    if args.predict and (several or joined_from_outside()):
        raise ValueError("--predict runs in one process: leave --num-gpus and --num-machines at 1")
    if several and not joined_from_outside():
        return device, launch(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    return device, None


@checking(FloatingPointError)
def write_predicted(cfg, args) -> None:
    begin(cfg, args)
    paths, features = predict(cfg, args.predict)
    files = write_features(args.features, paths, features)
    print(f"{len(paths)} features of {features.shape[1]} values in {' and '.join(files)}")


@exit_status
def main(args) -> int:
    device, status = prepare(args)
    if status is not None:
        return status
    with join(device):
        return one_process(args)


def one_process(args) -> int:
    cfg = read_config(args)
    if args.predict or args.eval_only:
        check_trained(cfg)
    if args.predict:
        write_predicted(cfg, args)
    elif args.eval_only:
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
            raise PseudoLabelError(f"training stopped, its checkpoints are kept in {cfg.OUTPUT_DIR}: {error}") from error
    return 0


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--predict", metavar="FOLDER", help="write the features of a folder's images, do not train")
    parser.add_argument("--features", metavar="FILE", default="features.npz",
                        help="where --predict writes: .npz, .npy or .parquet; tools/predict.py also finds neighbours")
    sys.exit(main(parser.parse_args()))
