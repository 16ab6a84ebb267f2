"""Section "step": a training step of the method beside the plain way and beside its networks alone."""
import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage

from ...data import adaptation_loader
from ...engine.defaults import use_device
from ...engine.train_step import Precision, TrainingStep, build_optimizer
from .bare_step import BareStep
from .crops import write_crops
from .nets import benchmark_config
from .plain_step import PlainStep, plain_batches
from .row import Row

__all__ = ["measure_step", "rows"]

_LIMITS = {True: 0.10, False: 0.15}  # of the overhead over the floor: on the CPU, on another device
_UNMEASURED = 2  # rounds before the first that counts: allocations, choices of kernels


def rows(args: argparse.Namespace) -> list[Row]:
    """One row a network of ``args.models``."""
    return [measure_step(name, args) for name in args.models]


def measure_step(name: str, args: argparse.Namespace) -> Row:
    """Measure ``args.repeats`` rounds of our step, the plain one and the floor, one after the other in each round.

    Ours is the trainer's: the next batch of its loader, losses and backward passes, optimiser, moving average. The plain one
    makes its batch by the host's transforms. The floor has the precision and memory layout of ours.

    Args:
        name: of a network in :data:`.nets.NETWORKS`.
        args: ``batch``, ``size`` (None: the network's), ``peers``, ``classes``, ``repeats``, ``precision``, ``device``,
            ``channels_last``, ``compile``, ``seed``.
    """
    rounds = _UNMEASURED + args.repeats
    cfg = benchmark_config(
        name, args.device, batch=args.batch, size=args.size, peers=args.peers, steps=rounds, dtype=args.precision,
        channels_last=args.channels_last, compiled=args.compile,
    )
    use_device(args.device)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    torch.manual_seed(args.seed)
    model = build_model(cfg).train()
    plain = PlainStep(cfg, model)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    step = TrainingStep(
        model, build_optimizer(cfg, list(model.students)), Precision(cfg), compiled=args.compile,
        read_every=1 if torch.device(args.device).type == "cpu" else rounds, epoch_length=rounds,
    )
    for networks in (model, plain.model):
        generator = torch.Generator().manual_seed(args.seed)
        centroids = F.normalize(torch.randn(args.classes, networks.centroid_size, generator=generator), dim=1)
        networks.reset_classifiers(centroids.to(networks.device))
    batch, classes = cfg.SOLVER.IMS_PER_BATCH, args.classes
    with tempfile.TemporaryDirectory() as folder, EventStorage(0):
        items = write_crops(Path(folder), max(2 * batch, 64), seed=args.seed)
        labels = [identity % classes for _, identity, _ in items]
        step.set_data_loader(adaptation_loader(cfg, items, labels, args.seed))
        draws = [[(j, labels[j]) for j in range(i * batch % len(items), i * batch % len(items) + batch)] for i in range(rounds)]
        batches = plain_batches(cfg, items, draws)
        given = next(plain_batches(cfg, items, draws[:1]))
        views = [model.pixels(given["images"][:, k]) for k in range(model.num_peers)]
        bare = BareStep(model, views, given["targets"].to(model.device), step.precision)

        def ours(number: int) -> None:
            step.iter = number
            step.run_step()
            model.update_teachers(number, cfg.SSKD.EMA.MOMENTUM)

        kinds: dict[str, Callable[[int], object]] = {
            "ours": ours,
            "plain": lambda number: plain(next(batches), cfg.SSKD.EMA.MOMENTUM),
            "floor": lambda number: bare(),
        }
        wall, cpu = _in_turn(kinds, rounds, step.precision.device_type)
    return _row(name, args, cfg, step.precision.name, wall, cpu)


def _in_turn(
    kinds: dict[str, Callable[[int], object]], rounds: int, device_type: str
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU seconds of every measured call; the order of the kinds turns from round to round, so that none is favoured."""
    wall: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    names = list(kinds)
    for number in range(rounds):
        for name in names[number % len(names):] + names[:number % len(names)]:
            _synchronise(device_type)
            start, start_cpu = time.perf_counter(), time.process_time()
            kinds[name](number)
            _synchronise(device_type)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    return tuple({name: each[_UNMEASURED:] for name, each in seconds.items()} for seconds in (wall, cpu))


def _row(name: str, args: argparse.Namespace, cfg: CfgNode, precision: str, wall: dict, cpu: dict) -> Row:
    median = {kind: statistics.median(each) for kind, each in wall.items()}
    over, over_cpu = _ratio(wall["ours"], wall["floor"]) - 1, _ratio(cpu["ours"], cpu["floor"]) - 1
    gain = _ratio(wall["plain"], wall["ours"])
    height, width = cfg.INPUT.SIZE_TRAIN
    on_cpu = torch.device(args.device).type == "cpu"
    of_cpu = f" ({over_cpu:+.1%} CPU time)" if on_cpu else ""
    return Row(
        section="step",
        what=f"{name}, K = {args.peers}, batch {cfg.SOLVER.IMS_PER_BATCH}, {height}x{width}",
        unit="s/step",
        ours=median["ours"], plain=median["plain"], floor=median["floor"],
        target=f"over the floor {over:+.1%}{of_cpu} (<= {_LIMITS[on_cpu]:.0%}); plain / ours {gain:.2f} (>= 1)",
        note=precision + (", channels last" if args.channels_last else "") + (", compiled" if args.compile else "")
        + (f", {cfg.DATALOADER.NUM_WORKERS} workers" if cfg.DATALOADER.NUM_WORKERS else ""),
        details={"seconds": wall, "cpu_seconds": cpu, "overhead": over, "cpu_overhead": over_cpu, "plain_over_ours": gain},
    )  # fmt: skip


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(one, other))


def _synchronise(device_type: str) -> None:
    """Wait until the device has done what it was given; the CPU does everything at once."""
    if device_type == "cuda":
        torch.cuda.synchronize()
