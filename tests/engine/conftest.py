"""The tiny data sets, one finished run of the whole pipeline, and trainers that start from its source
models.
"""

import json
import shutil
import types

import pytest
from tiny_reid import load_checkpoint, tiny_adaptation

from fastreid_sskd.engine import AdaptationTrainer, run
from fastreid_sskd.engine.defaults import seed_everything
from fastreid_sskd.modeling import load_source_weights


@pytest.fixture(autouse=True)
def _data_sets(data_sets):
    """Every test here reads the tiny data sets."""


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """A run from nothing to its end: two source models, then two epochs of three iterations on the target."""
    output = tmp_path_factory.mktemp("finished")
    cfg = tiny_adaptation(output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        results = run(cfg)
    lines = (output / "metrics.json").read_text().splitlines()
    return types.SimpleNamespace(
        cfg=cfg,
        output=output,
        results=results,
        final=load_checkpoint(output / "model_final.pth"),
        metrics=[json.loads(line) for line in lines],
        record=json.loads((output / "results.json").read_text()),
        # as source_weights names them: the better on the source's test set
        sources=[str(output / "source" / f"peer{k}" / "model_best.pth") for k in range(2)],
    )


@pytest.fixture
def adaptation(finished, tmp_path):
    """Makes configs that start from the finished source models, in a folder of the test's own."""

    def make(*opts, output=None):
        return tiny_adaptation(
            output or tmp_path / "out", "SSKD.SOURCE.WEIGHTS", str(finished.sources), *opts
        )

    return make


@pytest.fixture(scope="session")
def _one_epoch(finished, world, tmp_path_factory):
    output = tmp_path_factory.mktemp("one_epoch")
    cfg = tiny_adaptation(output, "SSKD.SOURCE.WEIGHTS", str(finished.sources), "SOLVER.MAX_EPOCH 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        return output, run(cfg)


@pytest.fixture
def one_epoch(_one_epoch, tmp_path):
    """The results of a finished run of one epoch, a copy of whose folder lies where `adaptation` writes."""
    output, results = _one_epoch
    shutil.copytree(output, tmp_path / "out")
    return results


@pytest.fixture
def trainer(adaptation):
    """A trainer ready to start, as `run` prepares it; keyword `hooks` are registered last."""

    def make(*opts, hooks=(), weights=None):
        cfg = adaptation(*opts)
        seed_everything(cfg.SEED)
        made = AdaptationTrainer(cfg)
        load_source_weights(made.model, weights or list(cfg.SSKD.SOURCE.WEIGHTS))
        made.register_hooks(hooks)
        return made

    return make
