#!/usr/bin/env python3
r"""What a model gives on its test sets when images are resized as trackers resize crops.

    benchmarks/resize.py --config-file C MODEL.WEIGHTS W [KEY value ...]

Training and evaluation resize by Pillow's bicubic filter, which smooths an image that becomes smaller.
OpenCV's bilinear one, of trackers, does not; Pillow's does, and tells the two apart. Prints percent.
"""

import argparse
import logging
import unittest.mock

import numpy as np
from PIL import Image
from torchvision.transforms import Resize

from fastreid_sskd.engine import evaluate, load_config, resolve
from fastreid_sskd.export.consumers import bilinear_8bit

WAYS = {
    "bicubic, Pillow (evaluation)": Resize.forward,
    "bilinear, OpenCV (trackers)": lambda step, image: Image.fromarray(
        bilinear_8bit(np.asarray(image), step.size).astype(np.uint8)
    ),
    "bilinear, Pillow": lambda step, image: image.resize(step.size[::-1], Image.Resampling.BILINEAR),
}


def main() -> None:
    """Print a line for each way and each row of the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY value ...")
    args = parser.parse_args()
    cfg = resolve(load_config(args.config_file, args.opts))
    cfg.freeze()
    logging.disable(logging.INFO)
    for name, way in WAYS.items():
        with unittest.mock.patch.object(Resize, "forward", way):
            print(f"{name}: {evaluate(cfg)}", flush=True)


if __name__ == "__main__":
    main()
