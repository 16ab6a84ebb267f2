"""What check_clients.py takes: exports of an adapted model, crops of people, and the features of evaluation.

    tests/clients/make_files.py FOLDER [RUN]

Runs in the package's own environment, which has none of the packages that the exports are for. RUN is the
folder of a run of SSKD; without it a tiny one is trained.
"""

import os
import runpy
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from tiny_reid import tiny_adaptation, write_world

from fastreid_sskd.data.synthetic import TARGET, render
from fastreid_sskd.engine import load_config, run
from fastreid_sskd.engine.pipeline import load_trained
from fastreid_sskd.export import CONSUMERS, deployed

# file -> whose preprocessing it meets, and how it is exported; the last is what BoxMOT took without an error
EXPORTS = {
    "boxmot.onnx": ("boxmot", "--for boxmot"),
    "boxmot.torchscript": ("boxmot", "--for boxmot --format torchscript"),
    "boxmot.xml": ("boxmot", "--for boxmot --format openvino"),
    "half.onnx": ("boxmot", "--for boxmot --half"),
    "ultralytics.onnx": ("ultralytics", "--for ultralytics"),
    "openvino.xml": ("openvino", "--for openvino"),
    "plain.onnx": ("boxmot", "--format onnx --pixels 0-255"),
}


def train(folder: Path) -> Path:
    """A tiny adaptation; the folder of the run."""
    os.environ["FASTREID_DATASETS"] = str(write_world(folder / "data"))
    run(tiny_adaptation(folder / "run"))
    return folder / "run"


def main(folder: Path, trained: Path) -> None:
    """Write the files into the folder."""
    config, weights = str(trained / "config.yaml"), ("MODEL.WEIGHTS", str(trained / "model_best.pth"))
    cfg = load_config(config, list(weights))
    size = cfg.INPUT.SIZE_TEST
    crops = []
    for number, shape in enumerate([tuple(size), (61, 27), (230, 91), (400, 170)]):
        crops.append(str(folder / f"{number}.png"))
        render(TARGET, seed=0, identity=number, camera=number % 2, shot=0, size=shape).save(crops[-1])
    network = deployed(load_trained(cfg), unit_length=True)
    features = {}
    for name, (consumer, options) in EXPORTS.items():
        features[name] = network.expected(CONSUMERS[consumer].read(crops, size)[0]).cpu().numpy()
        sys.argv = [
            "export.py",
            "--config-file",
            config,
            "--output",
            str(folder / name),
            *options.split(),
            *weights,
        ]
        try:
            runpy.run_path(str(TESTS.parent / "tools" / "export.py"), run_name="__main__")
        except SystemExit as left:
            if left.code:
                raise
    np.savez(folder / "features.npz", **features)


if __name__ == "__main__":
    output = Path(sys.argv[1]).resolve()
    output.mkdir(parents=True, exist_ok=True)
    main(output, Path(sys.argv[2]) if len(sys.argv) > 2 else train(output))
