"""The tiny data sets, and a finished run of the whole pipeline on them."""

import pytest
from tiny_reid import tiny_adaptation, write_world

from fastreid_sskd.engine import run


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder of the tiny data sets."""
    return write_world(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def data_sets(world, monkeypatch):
    """FASTREID_DATASETS names the tiny data sets."""
    monkeypatch.setenv("FASTREID_DATASETS", str(world))


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """Folder of a run of two source models and two epochs of two peers on the target, evaluated after each."""
    output = tmp_path_factory.mktemp("runs") / "sskd"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        run(tiny_adaptation(output))
    return output


@pytest.fixture
def make_result():
    """Makes results of seed 1 with an mAP, fields overridden."""
    from fastreid_sskd.benchmark import Result

    def make(mAP=50.0, **fields):
        metrics = {"mAP": mAP, "Rank-1": mAP + 10, "Rank-5": mAP + 20, "Rank-10": mAP + 30, "mINP": mAP / 2}
        given = {
            "method": "m", "target": "T", "metrics": metrics, "source": "S", "backbone": "resnet50", "epochs": 4,
            "selection": "last epoch", "images_per_bn": 32, "hours": 1.0, "device": "cpu", "seed": 1,
        }  # fmt: skip
        return Result(**{**given, **fields})

    return make
