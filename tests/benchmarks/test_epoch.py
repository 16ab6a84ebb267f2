"""benchmarks/epoch.py: three kinds of the same epoch, measured in turn."""

import argparse

import epoch as benchmark
import pytest
from fastreid.utils.events import EventStorage
from networks import NETWORKS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A network of two convolutions under the name "small", in images of 32 x 16."""
    import tiny_reid  # noqa: F401  registers the backbone

    monkeypatch.setitem(NETWORKS, "small", ("build_tiny_reid_backbone", "0x", 16, 8, (32, 16)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rows(precision):
    args = argparse.Namespace(
        models=["small"], images=32, tests=24, steps=2, batch=None, size=None, peers=2, repeats=1,
        precision=precision, channels_last=False, device="cpu", seed=0,
    )  # fmt: skip
    found = benchmark.rows(args)
    assert [row.what.partition(":")[0] for row in found] == [*benchmark.STAGES, "epoch"]
    whole = found[-1]
    for kind in ("ours", "plain", "bare"):
        parts = [row.details["seconds"][kind][0] for row in found[:-1]]
        assert whole.details["seconds"][kind][0] == pytest.approx(sum(parts))
    assert all(min(row.ours, row.plain) > 0 for row in found) and found[1].floor is None
    assert whole.floor == whole.details["seconds"]["bare"][0] > 0
    assert precision in whole.what and "ours / bare" in whole.target and "peak MB: ours" in whole.note
    assert "images/s" in found[0].note
    assert "(>= 2)" in found[0].target if precision == "bfloat16" else "(>= 1.15)" in found[0].target


def test_our_epoch_trains_and_the_bare_passes_do_not(tmp_path):
    args = argparse.Namespace(
        images=32, tests=24, steps=2, batch=None, size=None, peers=2, precision="float32",
        channels_last=False, device="cpu", seed=0,
    )  # fmt: skip
    with EventStorage(0):
        one = benchmark.Epoch("small", tmp_path, args)
        weight = one.model.students[0].backbone[0].weight
        before = weight.detach().clone()
        assert list(one.bare()) == list(benchmark.STAGES) and weight.equal(before)
        assert list(one.ours()) == list(benchmark.STAGES) and not weight.equal(before)
        other = one.plain_step.model.students[0].backbone[0].weight
        assert other.equal(before)
        assert list(one.plain()) == list(benchmark.STAGES) and not other.equal(before)
