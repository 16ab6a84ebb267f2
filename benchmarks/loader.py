#!/usr/bin/env python3
"""Measure how many views a core makes in a second, compared with all of the host's transforms for every view.

benchmarks/loader.py --repeats 5
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import measure
import torch
from fastreid.config import CfgNode
from measure import Row
from networks import benchmark_config, plain_batches, write_crops

from fastreid_sskd.data import Item, TargetLoader, extraction_loader

_BATCHES = 2  # of each measurement
_LABELS = 4  # images that share a label
_TARGET = 2.5
_NETWORK = "resnet50"  # for the size of its images and batches; no network is run


def rows(args: argparse.Namespace) -> list[Row]:
    """One row a setting: files read each time or kept in memory.

    Crops of 128 x 64 pixels are loaded without workers, on one thread, so that the process's CPU time is that
    of all the work. Every repeat measures the plain way and each setting after it.

    Args:
        args: ``batch``, ``size`` (None: those of ResNet-50), ``peers``, ``repeats``, ``device``, ``seed``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(args, Path(folder))
    finally:
        torch.set_num_threads(threads)


def _measure(args: argparse.Namespace, folder: Path) -> list[Row]:
    def config(**keys) -> CfgNode:
        cfg = benchmark_config(
            _NETWORK, args.device, batch=args.batch, size=args.size, peers=args.peers, steps=_BATCHES
        )
        cfg.SSKD.merge_from_list([str(part) for pair in keys.items() for part in pair])
        return cfg

    cfg = config()
    size, peers = cfg.SOLVER.IMS_PER_BATCH, cfg.SSKD.NUM_PEERS
    items = write_crops(folder, _BATCHES * size, seed=args.seed)
    draws = [[(i, i // _LABELS) for i in range(at, at + size)] for at in range(0, len(items), size)]
    room = 2 * len(items) * 3 * cfg.INPUT.SIZE_TRAIN[0] * cfg.INPUT.SIZE_TRAIN[1] // 2**20 + 1
    settings: dict[str, Callable[[int], Iterable]] = {"plain": lambda seed: plain_batches(cfg, items, draws)}
    for kept, what in ((0, "files read each time"), (room, "images in memory")):
        settings[what] = _epochs(config(CACHE_IMAGES=kept), items)

    found: dict[str, list[float]] = {what: [] for what in settings}
    for repeat in range(args.repeats + 1):
        for what, batches in settings.items():
            speed = views_per_second(lambda batches=batches, repeat=repeat: batches(repeat))
            if repeat:  # the first warms up
                found[what].append(speed)
    plain = found.pop("plain")
    return [_row(what, speeds, plain, cfg, size, peers) for what, speeds in found.items()]


def _epochs(cfg: CfgNode, items: list[Item]) -> Callable[[int], Iterable]:
    loader, labels = TargetLoader(cfg, items), [i // _LABELS for i in range(len(items))]
    if loader.cache is not None:  # filled as a run's first refresh does
        for _ in extraction_loader(cfg, items, cache=loader.cache):
            pass
    return lambda seed: loader.epoch(labels, seed)


def views_per_second(load: Callable[[], Iterable[dict]]) -> float:
    """Views per second of this process's CPU time, in the batches that ``load`` gives."""
    started, views = time.process_time(), 0
    for batch in load():
        images = batch["images"]
        views += images.shape[0] * images.shape[1]
        images[-1, -1, 0, 0, 0].item()  # waits for the device
    return views / (time.process_time() - started)


def _row(what: str, speeds: list[float], plain: list[float], cfg: CfgNode, size: int, peers: int) -> Row:
    ratio = statistics.median(own / other for own, other in zip(speeds, plain))
    height, width = cfg.INPUT.SIZE_TRAIN
    return Row(
        section="loader",
        what=f"{what}; {peers} views of {height}x{width}, batch {size}",
        unit="views/s per core",
        ours=statistics.median(speeds),
        plain=statistics.median(plain),
        target=f"{ratio:.2f}x (>= {_TARGET}x)",
        note=f"CPU time, JPEG of 128x64, {min(speeds):.0f} to {max(speeds):.0f}",
        details={"ours": speeds, "plain": plain},
    )


if __name__ == "__main__":
    _parser = measure.parser(__doc__)
    measure.add_batch_options(_parser)
    measure.main(_parser, rows)
