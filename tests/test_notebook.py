"""docs/adapt.ipynb: its cells run as they are, and the model has learned from the target."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_reid import CONFIGS

NOTEBOOK = json.loads((CONFIGS.parent / "docs" / "adapt.ipynb").read_text(encoding="utf-8"))


def test_its_outputs_are_stripped():
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or not (cell["outputs"] or cell["execution_count"])


@pytest.mark.slow
def test_its_cells_run(tmp_path, monkeypatch, host_logging):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "datasets"))
    names: dict = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # noqa: S102 - the project's own page
    assert list(names["mAP"]) == [0, 3] and names["mAP"][0] < names["mAP"][3] < 100
    features, found = names["features"], names["found"]
    assert features.shape == (len(names["gallery"]), 512)
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)
    assert len(found) == 8 and found == sorted(found, key=lambda match: -match.similarity)
    assert isinstance(names["neighbors_picture"](names["query"][0], [found[0].image], [1.0]), Image.Image)
