#!/usr/bin/env python3
r"""Export a trained model: as a plain fast-reid checkpoint with its yml, or as an ONNX graph.

    tools/export.py --config-file runs/sskd_m2d/config.yaml --format fastreid --output exported/m2d.pth \
        MODEL.WEIGHTS runs/sskd_m2d/model_final.pth
    tools/export.py --config-file runs/sskd_m2d/config.yaml --format onnx --output exported/m2d.onnx \
        --peer ensemble MODEL.WEIGHTS runs/sskd_m2d/model_final.pth

What is written is loaded again and compared with the model's own evaluation before it gets its name:
fast-reid's checkpoint through fast-reid, the graph through onnxruntime. ONNX needs the extra: pip install
"fastreid-sskd[onnx]". Exit status 2: refused, nothing is exported, and an older export stays as it was.
"""

import argparse
import dataclasses
import os
import sys

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fastreid_sskd.answers import exported_threshold
from fastreid_sskd.engine import load_config, resolve
from fastreid_sskd.engine.pipeline import load_trained
from fastreid_sskd.export import deployed, export_baseline, export_onnx
from fastreid_sskd.export.baseline import check_baseline_files
from fastreid_sskd.export.onnx_graph import check_onnx_file
from fastreid_sskd.refusals import checking, exit_status


@exit_status
def main() -> int:
    """Export as the command line says; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="of the run: config.yaml in its output folder")
    parser.add_argument(
        "--output", required=True, help="file to write: .pth (the yml goes beside it) or .onnx"
    )
    parser.add_argument("--format", required=True, choices=("fastreid", "onnx"))
    parser.add_argument("--peer", default="best", help="best (default), a number, or for onnx also ensemble")
    parser.add_argument(
        "--pixels",
        default="inside",
        choices=("inside", "outside"),
        help="onnx: the graph takes values of 0..255 (inside, the default), or normalised ones",
    )
    parser.add_argument("--unit-length", action="store_true", help="onnx: divide features by their length")
    parser.add_argument(
        "--false-match-rate", type=float, metavar="RATE",
        help="onnx: estimate the cosine from which two images are one person, e.g. at 1e-3, for the metadata",
    )  # fmt: skip
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, default=[], help="overrides: MODEL.WEIGHTS FILE, KEY value ..."
    )
    args = parser.parse_args()
    if args.format == "fastreid" and (
        args.pixels != "inside" or args.unit_length or args.false_match_rate is not None
    ):
        parser.error(
            "--pixels, --unit-length and --false-match-rate are for --format onnx: a fast-reid "
            "Baseline does as its config says"
        )

    with checking(RuntimeError, TypeError):
        cfg = resolve(load_config(args.config_file, args.opts))
        cfg.freeze()
        check = check_baseline_files if args.format == "fastreid" else check_onnx_file
        check(args.output, [args.config_file, cfg.MODEL.WEIGHTS, *cfg.SSKD.PEERS])
        model = load_trained(cfg)
        same_person = {}
        if args.false_match_rate is not None:
            threshold = exported_threshold(cfg, model, args.peer, args.false_match_rate)
            same_person = {"same_person": dataclasses.asdict(threshold)}
            print(threshold)
        if args.format == "fastreid":
            yml, error = export_baseline(cfg, model, args.output, args.peer)
            print(f"{args.output} and {yml}: fast-reid gives the same features to {error:.1e}")
        else:
            inside = args.pixels == "inside"
            network = deployed(model, args.peer, normalise_pixels=inside, unit_length=args.unit_length)
            size = list(cfg.INPUT.SIZE_TEST)
            error = export_onnx(network, args.output, size, metadata={
                "colour_order": "RGB", "size": size, "resize": "bicubic",
                "pixel_values": "0..255" if inside else "normalised: (value - pixel_mean) / pixel_std",
                "pixel_mean": list(cfg.MODEL.PIXEL_MEAN), "pixel_std": list(cfg.MODEL.PIXEL_STD),
                "peer": args.peer, "weights": os.path.basename(cfg.MODEL.WEIGHTS),
                **same_person,
            })  # fmt: skip
            print(f"{args.output}: onnxruntime gives the same features to {error:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
