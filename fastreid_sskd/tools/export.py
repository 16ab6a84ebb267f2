r"""Export a trained model: for a tracker or a runtime, as a graph, or as a plain fast-reid checkpoint.

    tools/export.py --config-file runs/sskd_m2d/config.yaml --for boxmot --output exported/m2d.onnx \
        --peer ensemble MODEL.WEIGHTS runs/sskd_m2d/model_final.pth
    tools/export.py --config-file runs/sskd_m2d/config.yaml --format onnx --output exported/m2d.onnx \
        --pixels 0-1 MODEL.WEIGHTS runs/sskd_m2d/model_final.pth

--for chooses the pixels, their order of colours, names and batch that a consumer expects, and writes and
prints its configuration: boxmot (.onnx, or --format torchscript, openvino), ultralytics (.onnx), deepstream
(.onnx), openvino (.xml, as its model zoo), fastreid (.pth with its .yml). For others --format onnx (.onnx),
torchscript (.torchscript) or openvino (.xml) with --pixels: 0-255 suits who reads images and does no more,
0-1 torchvision's ToTensor alone, imagenet ToTensor and Normalize. All are RGB.

What is written is loaded again and compared with the model's own evaluation before it gets its name. ONNX
needs pip install "fastreid-sskd[onnx]", OpenVINO "fastreid-sskd[onnx,openvino]". Exit status 2: refused,
nothing is exported, and an older export stays as it was.
"""

import argparse
import dataclasses
import os

from fastreid_sskd.answers import exported_threshold
from fastreid_sskd.data.loaders import image_size
from fastreid_sskd.engine import load_config, resolve
from fastreid_sskd.engine.files import check_output
from fastreid_sskd.engine.pipeline import load_trained
from fastreid_sskd.export import CONSUMERS, deployed, export_baseline, export_graph
from fastreid_sskd.export.baseline import check_baseline_files
from fastreid_sskd.export.consumers import ANYONE, Consumer
from fastreid_sskd.export.deployed import PIXELS
from fastreid_sskd.export.graphs import FORMATS, check_graph_files
from fastreid_sskd.refusals import checking, exit_status


def pixels(given: str) -> str:
    """A value of --pixels."""
    renamed = {"inside": "0-255", "outside": "normalised"}
    if given in renamed:
        raise argparse.ArgumentTypeError(f"{given} is now called {renamed[given]}")
    return given


def taker(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Consumer:
    """Who takes the file, as the command line says; fills in ``args.format``."""
    consumer = CONSUMERS.get(args.consumer, ANYONE)
    options = [
        f"--{name}" for name in ("pixels", "unit-length", "half") if getattr(args, name.replace("-", "_"))
    ]
    if not (args.format or args.consumer):
        parser.error("say --for WHOM or --format WHICH")
    args.format = args.format or consumer.formats[0]
    if args.format not in consumer.formats:
        parser.error(
            f"--for {consumer.name} takes {' or '.join(consumer.formats)}, not --format {args.format}"
        )
    if args.false_match_rate is not None and not 0 < args.false_match_rate < 1:
        parser.error(f"--false-match-rate lies in (0, 1), e.g. 1e-3; got {args.false_match_rate:g}")
    if args.format == "fastreid" and args.false_match_rate is not None:
        options.append("--false-match-rate")
    if args.format == "fastreid" and options:
        parser.error(f"{options[0]} is for graphs: a fast-reid Baseline does as its config says")
    if args.consumer and options not in ([], ["--half"]):
        parser.error(f"--for {consumer.name} sets {options[0]} itself: leave it out")
    if args.consumer:
        return consumer
    return dataclasses.replace(consumer, pixels=args.pixels or "0-255", unit_length=args.unit_length)


@exit_status
def main() -> int:
    """Export as the command line says; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="of the run: config.yaml in its output folder")
    parser.add_argument("--output", required=True, help="file to write, with the ending of its format")
    parser.add_argument("--for", dest="consumer", choices=tuple(CONSUMERS), help="who takes the file")
    parser.add_argument("--format", choices=("fastreid", *FORMATS), help="of the file")
    parser.add_argument(
        "--peer", default="best", help="best (default), a number, or for graphs also ensemble"
    )
    parser.add_argument(
        "--pixels", type=pixels, choices=tuple(PIXELS),
        help="values that a graph takes: 0-255 (default), 0-1, normalised by the model's mean and standard "
        "deviation, or by ImageNet's",
    )  # fmt: skip
    parser.add_argument("--unit-length", action="store_true", help="divide features by their length")
    parser.add_argument(
        "--false-match-rate", type=float, metavar="RATE",
        help="for a graph's metadata: estimate the cosine from which two images are one person, e.g. at 1e-3",
    )  # fmt: skip
    parser.add_argument("--half", action="store_true", help="float16 inside of an ONNX or OpenVINO graph")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=[], help="overrides: MODEL.WEIGHTS FILE, KEY value ..."
    )
    args = parser.parse_args()
    consumer = taker(parser, args)

    with checking(RuntimeError, TypeError):
        cfg = resolve(load_config(args.config_file, args.opts))
        cfg.freeze()
        size, reads = image_size(cfg), [args.config_file, cfg.MODEL.WEIGHTS, *cfg.SSKD.PEERS]
        if args.format == "fastreid":
            check_baseline_files(args.output, reads)
        else:
            check_output(args.output, (FORMATS[args.format],))
            check_graph_files(args.output, consumer, args.half, reads)
        if consumer.resize and cfg.INPUT.CROP.ENABLED:
            raise ValueError(
                f"INPUT.CROP.ENABLED: evaluation cuts the middle out of images and {consumer.name} does not: "
                "export with --format and do so before the graph"
            )
        model = load_trained(cfg)
        more = {}
        if cfg.INPUT.CROP.ENABLED:
            more["resize"] = f"bicubic to {list(cfg.INPUT.SIZE_TEST)}, and the middle cut out"
        if args.false_match_rate is not None:
            threshold = exported_threshold(cfg, model, args.peer, args.false_match_rate)
            more["same_person"] = dataclasses.asdict(threshold)
            print(threshold)
        if args.format == "fastreid":
            yml, error = export_baseline(cfg, model, args.output, args.peer)
            print(f"{args.output} and {yml}: fast-reid gives the same features to {error:.1e}")
        else:
            network = deployed(
                model,
                args.peer,
                pixels=consumer.pixels,
                colours=consumer.colours,
                unit_length=consumer.unit_length,
            )
            error = export_graph(
                network, args.output, size, consumer=consumer, half=args.half,
                metadata={"peer": args.peer, "weights": os.path.basename(cfg.MODEL.WEIGHTS), **more},
            )  # fmt: skip
            print(f"{args.output}: the graph gives the same features to {error:.1e}")
            for file in consumer.side_files(args.output)[:1]:
                with open(file, encoding="utf-8") as snippet:
                    print(f"{file}:\n{snippet.read()}", end="")
    return 0
