"""Runs that load their images in other ways end the same, bit for bit.

Also when they change it on the way.
"""

import pytest
import torch
from same_runs import assert_same_files, cut
from tiny_reid import load_checkpoint, tiny_source

from fastreid_sskd.data import views
from fastreid_sskd.data.views import read_image
from fastreid_sskd.engine import run
from fastreid_sskd.evaluation import features

FASTEST = ("SSKD.CACHE_IMAGES 8", "DATALOADER.NUM_WORKERS 2")


@pytest.mark.parametrize("opts", [FASTEST, FASTEST[:1], FASTEST[1:]], ids=" ".join)
def test_a_run_ends_the_same(finished, adaptation, opts):
    cfg = adaptation(*opts)
    run(cfg)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


@pytest.mark.parametrize("at", [2, 4])
def test_a_run_is_gone_on_with_in_another_way(finished, adaptation, at):
    """Killed and resumed, each time with other settings, which the checkpoint allows."""
    cut(adaptation("SSKD.CHECKPOINT_ITERS 1", *FASTEST), at)
    cfg = adaptation("SSKD.CHECKPOINT_ITERS 1")
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_every_image_is_read_once_a_run(adaptation, monkeypatch):
    """For the first refresh; not for training and for the refreshes after it."""
    reads = []
    monkeypatch.setattr(views, "read_image", lambda path: reads.append(path) or read_image(path))
    run(adaptation("SSKD.CACHE_IMAGES 8", "TEST.EVAL_PERIOD 0"))
    assert len(reads) == len(set(reads)) == 48


def test_a_source_run_ends_the_same(tmp_path):
    for name, opts in (("usual", ()), ("fast", FASTEST)):
        run(tiny_source(tmp_path / name, "TEST.EVAL_PERIOD 0", *opts))
    one, other = (load_checkpoint(tmp_path / name / "model_final.pth")["model"] for name in ("usual", "fast"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_features_of_a_refresh_are_of_float_images(adaptation, monkeypatch):
    """As before there was a cache, whatever a model's own normalisation does with 8 bits."""
    seen, extract = [], features.extract_features
    monkeypatch.setattr(
        "fastreid_sskd.engine.hooks.extract_features",
        lambda model, loader, *rest: (
            seen.extend(batch["images"].dtype for batch in loader) or extract(model, loader, *rest)
        ),
    )
    run(adaptation("SSKD.CACHE_IMAGES 8", "TEST.EVAL_PERIOD 0", "SOLVER.MAX_EPOCH 1"))
    assert set(seen) == {torch.float32}
