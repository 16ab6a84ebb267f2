"""A finished run of the whole pipeline, and results made up."""

import pytest


@pytest.fixture(autouse=True)
def _data_sets(data_sets):
    """Every test here reads the tiny data sets."""


@pytest.fixture(scope="session")
def finished(finished_folder):
    """Folder of a finished run."""
    return finished_folder


@pytest.fixture
def make_result():
    """Makes results of seed 1 with an mAP, fields overridden."""
    from fastreid_sskd.benchmark import Result

    def make(mAP=50.0, **fields):
        metrics = {"mAP": mAP, "Rank-1": mAP + 10, "Rank-5": mAP + 20, "Rank-10": mAP + 30, "mINP": mAP / 2}
        given = {
            "method": "m",
            "target": "T",
            "metrics": metrics,
            "source": "S",
            "backbone": "resnet50",
            "epochs": 4,
            "selection": "last epoch",
            "images_per_bn": 32,
            "hours": 1.0,
            "device": "cpu",
            "seed": 1,
        }
        return Result(**{**given, **fields})

    return make
