"""The loader's section of the benchmark: what is measured, on few and small images."""

import argparse

import loader
import pytest
import torch


@pytest.fixture
def args():
    return argparse.Namespace(batch=4, size=[32, 16], peers=2, repeats=2, device="cpu", seed=0)


def test_rows(args):
    """One a setting; more views a second are a larger ratio, and every repeat is in the record."""
    threads = torch.get_num_threads()
    rows = loader.rows(args)
    assert torch.get_num_threads() == threads
    assert [row.what.split(";")[0] for row in rows] == [
        "files read each time", "images in memory",
    ]  # fmt: skip
    for row in rows:
        assert row.section == "loader" and "2 views of 32x16, batch 4" in row.what
        assert len(row.details["ours"]) == len(row.details["plain"]) == 2
        assert min(row.details["ours"]) <= row.ours <= max(row.details["ours"]) and row.plain > 0
        ratios = sorted(a / b for a, b in zip(row.details["ours"], row.details["plain"]))
        assert (
            ratios[0] - 0.01 <= float(row.target.split("x")[0]) <= ratios[1] + 0.01
            and "(>= 2.5x)" in row.target
        )


def test_settings_are_those_of_their_rows(args, monkeypatch):
    """Kept images are all kept."""
    made, target_loader = [], loader.TargetLoader

    def recorded(cfg, items):
        made.append(target_loader(cfg, items))
        return made[-1]

    monkeypatch.setattr(loader, "TargetLoader", recorded)
    loader.rows(args)
    first, second = made
    assert first.cache is None and len(second.cache) == 8


def test_views_per_second(monkeypatch):
    """Of batches (B, K, 3, H, W), by the CPU time of what gives them."""
    now = [0.0]
    monkeypatch.setattr(loader.time, "process_time", lambda: now[0])

    def load():
        for _ in range(3):
            now[0] += 0.5
            yield {"images": torch.zeros(2, 4, 3, 5, 5)}

    assert loader.views_per_second(load) == 3 * 2 * 4 / 1.5
