#!/usr/bin/env python3
"""Measure a training step, compared with the plain way and with its networks alone.

    benchmarks/step.py --json step.json --markdown step.md
    benchmarks/step.py --models resnet50 osnet_x0_25 --repeats 5 --precision auto

Figures are medians of repeats that are measured in turn; a ratio is the median of the repeats' ratios.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import measure
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage
from measure import Row
from networks import NETWORKS, benchmark_config, plain_batches, write_crops

from fastreid_sskd.data import adaptation_loader
from fastreid_sskd.engine.defaults import use_device
from fastreid_sskd.engine.train_step import TrainingStep, build_optimizer, compile_backbones
from fastreid_sskd.losses.loss_set import without_autocast
from fastreid_sskd.modeling import SSKD
from fastreid_sskd.precision import Precision

_LIMITS = {True: 0.10, False: 0.15}  # of the overhead over the floor: on the CPU, on another device
_UNMEASURED = 2  # rounds before the first that counts: allocations, choices of kernels


def rows(args: argparse.Namespace) -> list[Row]:
    """One row a network of ``args.models``."""
    return [measure_step(name, args) for name in args.models]


def measure_step(name: str, args: argparse.Namespace) -> Row:
    """Measure ``args.repeats`` rounds of our step, the plain one and the floor, interleaved.

    Ours is the trainer's: the next batch of its loader, losses and backward passes, optimiser, moving
    average. The plain one makes its batch by the host's transforms. The floor has the precision and memory
    layout of ours.

    Args:
        name: of a network in :data:`networks.NETWORKS`.
        args: ``batch``, ``size`` (None: the network's), ``peers``, ``classes``, ``repeats``, ``precision``,
            ``device``, ``channels_last``, ``compile``, ``seed``.
    """
    rounds = _UNMEASURED + args.repeats
    cfg = benchmark_config(
        name,
        args.device,
        batch=args.batch,
        size=args.size,
        peers=args.peers,
        steps=rounds,
        dtype=args.precision,
        channels_last=args.channels_last,
        compiled=args.compile,
    )
    use_device(args.device)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    torch.manual_seed(args.seed)
    model = build_model(cfg).train()
    plain = PlainStep(cfg, model)
    precision = Precision(cfg)
    precision.lay_out(model)
    if args.compile:
        compile_backbones(model)
    step = TrainingStep(
        model,
        build_optimizer(cfg, list(model.students)),
        precision,
        read_every=1 if torch.device(args.device).type == "cpu" else rounds,
        epoch_length=rounds,
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
        draws = [
            [(j, labels[j]) for j in range(i * batch % len(items), i * batch % len(items) + batch)]
            for i in range(rounds)
        ]
        batches = plain_batches(cfg, items, draws)
        given = next(plain_batches(cfg, items, draws[:1]))
        views = [model.pixels(given["images"][:, k]) for k in range(model.num_peers)]
        bare = BareStep(model, views, given["targets"].to(model.device), precision)

        def ours(number: int) -> None:
            step.iter = number
            step.run_step()
            model.update_teachers(number, cfg.SSKD.EMA.MOMENTUM)

        kinds: dict[str, Callable[[int], object]] = {
            "ours": ours,
            "plain": lambda number: plain(next(batches), cfg.SSKD.EMA.MOMENTUM),
            "floor": lambda number: bare(),
        }
        wall, cpu = _in_turn(kinds, rounds, precision.device_type)
    return _row(name, args, cfg, precision, wall, cpu)


def _synchronise(device_type: str) -> None:
    """Wait until the device has done what it was given; the CPU does everything at once."""
    if device_type == "cuda":
        torch.cuda.synchronize()


def _in_turn(
    kinds: dict[str, Callable[[int], object]], rounds: int, device_type: str
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU seconds of every measured call.

    The order of the kinds turns from round to round, so that none is favoured.
    """
    wall: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    names = list(kinds)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            _synchronise(device_type)
            start, start_cpu = time.perf_counter(), time.process_time()
            kinds[name](number)
            _synchronise(device_type)
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    return tuple({name: each[_UNMEASURED:] for name, each in seconds.items()} for seconds in (wall, cpu))


def _row(
    name: str, args: argparse.Namespace, cfg: CfgNode, precision: Precision, wall: dict, cpu: dict
) -> Row:
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
        ours=median["ours"],
        plain=median["plain"],
        floor=median["floor"],
        target=f"over the floor {over:+.1%}{of_cpu} (<= {_LIMITS[on_cpu]:.0%}); "
        f"plain / ours {gain:.2f} (>= 1)",
        note=precision.name
        + ", channels last" * precision.channels_last
        + (", compiled" if args.compile else "")
        + (f", {cfg.DATALOADER.NUM_WORKERS} workers" if cfg.DATALOADER.NUM_WORKERS else ""),
        details={
            "seconds": wall,
            "cpu_seconds": cpu,
            "overhead": over,
            "cpu_overhead": over_cpu,
            "plain_over_ours": gain,
        },
    )


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(one, other))


class BareStep:
    """Teachers forward, students forward and backward, of views and gradients that are there already.

    Without loading, losses, moving average or optimiser. It moves no parameter, only running statistics, so
    it may share its model with another step.

    Args:
        model: in training mode.
        views: K tensors (B, 3, H, W), normalised, on the model's device.
        labels: (B,).
        precision: of the forward passes.
    """

    def __init__(
        self, model: SSKD, views: Sequence[torch.Tensor], labels: torch.Tensor, precision: Precision
    ):
        self.model = model
        self.views = views
        self.labels = labels
        self.precision = precision
        self._gradients: list[tuple[torch.Tensor, ...]] = []
        for student in model.students:
            shapes = (len(labels), student.feature_size), (len(labels), student.num_classes)
            self._gradients.append(
                tuple(torch.randn(shape, device=model.device) / len(labels) for shape in shapes)
            )

    def __call__(self) -> None:
        """Run the passes of every peer."""
        for student in self.model.students:
            for parameter in student.parameters():
                parameter.grad = None
        with torch.no_grad(), self.precision.autocast():
            for teacher, view in zip(self.model.teachers, self.views):
                teacher(view, self.labels)
        for student, view, gradients in zip(self.model.students, self.views, self._gradients):
            with self.precision.autocast():
                out = student(view, self.labels)
            outputs = (out["features"], out["cls_outputs"])
            with without_autocast(self.precision.device_type):
                torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(gradients, outputs)])


class PlainStep:
    """A step of all peers at once, with its own copy of the model.

    Args:
        cfg: the run's config.
        model: copied, the copy is trained.
    """

    def __init__(self, cfg: CfgNode, model: SSKD):
        self.cfg = cfg
        self.model = copy.deepcopy(model)
        parameters = [p for student in self.model.students for p in student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )

    def __call__(self, batch: dict, decay: float) -> list[float]:
        """One step; the losses as numbers, each waited for."""
        model = self.model
        images, labels = batch["images"].to(model.device), batch["targets"].to(model.device)
        views = [model.pixels(images[:, k]) for k in range(model.num_peers)]
        with torch.no_grad():
            taught = [
                teacher(view, labels)["pred_class_logits"] for teacher, view in zip(model.teachers, views)
            ]
        losses: list[torch.Tensor] = []
        for k, (student, view) in enumerate(zip(model.students, views)):
            out = student(view, labels)
            losses += plain_losses(
                self.cfg, out["features"], out["cls_outputs"], taught[(k + 1) % model.num_peers], labels
            )
        self.optimizer.zero_grad()
        sum(losses).backward()
        self.optimizer.step()
        with torch.no_grad():
            for teacher, student in zip(model.teachers, model.students):
                for old, new in zip(teacher.parameters(), student.parameters()):
                    old.mul_(decay).add_(new, alpha=1 - decay)
        return [loss.item() for loss in losses]


def looped_multi_similarity(
    features: torch.Tensor,
    labels: torch.Tensor,
    alpha: float = 2.0,
    beta: float = 40.0,
    base: float = 0.5,
    margin: float = 0.1,
    itself: float = 1e-5,
) -> torch.Tensor:
    """Multi-similarity with mining, anchor by anchor.

    Arguments as in :func:`fastreid_sskd.losses.multi_similarity`.
    """
    normalised = F.normalize(features, dim=1)
    similarity = normalised @ normalised.t()
    losses = []
    for i in range(len(features)):
        positives = similarity[i][labels == labels[i]]
        positives = positives[positives < 1 - itself]
        negatives = similarity[i][labels != labels[i]]
        if len(positives) < 1 or len(negatives) < 1:
            continue
        kept_negatives = negatives[negatives + margin > positives.min()]
        kept_positives = positives[positives - margin < negatives.max()]
        if len(kept_negatives) < 1 or len(kept_positives) < 1:
            continue
        losses.append(
            torch.log(1 + torch.exp(-alpha * (kept_positives - base)).sum()) / alpha
            + torch.log(1 + torch.exp(beta * (kept_negatives - base)).sum()) / beta
        )
    return sum(losses) / len(features) if losses else (features * 0).sum()


def plain_losses(
    cfg: CfgNode, features: torch.Tensor, logits: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor
) -> list[torch.Tensor]:
    """The method's four weighted losses of one student.

    Features (B, d), logits and the next teacher's (B, C).
    """
    losses = cfg.SSKD.LOSSES
    predictions = logits.log_softmax(dim=1)
    epsilon = losses.LabelSmoothCE.EPSILON
    smooth = F.one_hot(labels, logits.shape[1]) * (1 - epsilon) + epsilon / logits.shape[1]
    return [
        losses.LabelSmoothCE.WEIGHT * -(smooth * predictions).sum(dim=1).mean(),
        losses.SoftCE.WEIGHT * -(taught.softmax(dim=1) * predictions).sum(dim=1).mean(),
        losses.MultiSimilarity.WEIGHT * looped_multi_similarity(features, labels),
        losses.NuclearNorm.WEIGHT * -torch.linalg.matrix_norm(logits.softmax(dim=1), "nuc") / len(logits),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = measure.parser(__doc__)
    measure.add_batch_options(parser)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--classes", type=int, default=500, help="C, clusters")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "auto"),
        default="float32",
        help="of our step and the floor; the plain step is float32",
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="SSKD.CHANNELS_LAST for our step and the floor"
    )
    parser.add_argument("--compile", action="store_true", help="SSKD.COMPILE for our step and the floor")
    return parser


if __name__ == "__main__":
    measure.main(_parser(), rows)
