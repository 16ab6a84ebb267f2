#!/usr/bin/env python3
"""Measure an epoch of stage 2: features, pseudo-labels, steps and evaluation.

    benchmarks/epoch.py --models osnet_x0_25 --precision auto --json epoch.json
    benchmarks/epoch.py --models resnet50 --precision float32 --images 64 --tests 96 --steps 4

Compared with a plain epoch and with the bare passes of the networks. The plain epoch is float32: an
evaluation loop for the features, the refresh by dense formulas, steps with all graphs at once and the host's
transforms and ranking. The bare passes are those of the same networks, folded as ours, in the same precision,
on images that are there already. Figures are medians of repeats that are measured in turn; a ratio is the
median of the repeats' ratios.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import measure
import numpy as np
import torch
import torch.nn.functional as F
from dense_refresh import dense_refresh
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from fastreid.evaluation.rank import evaluate_py
from fastreid.modeling import build_model
from fastreid.utils.compute_dist import build_dist
from fastreid.utils.events import EventStorage
from measure import ResidentMemory, Row
from networks import NETWORKS, benchmark_config, plain_batches, write_crops
from step import BareStep, PlainStep

from fastreid_sskd.clustering import ClusterOptions, pseudo_labels
from fastreid_sskd.data import TargetLoader, extraction_loader
from fastreid_sskd.engine.defaults import use_device
from fastreid_sskd.engine.train_step import TrainingStep, build_optimizer, reset_optimizer
from fastreid_sskd.evaluation.evaluator import evaluate_features
from fastreid_sskd.evaluation.features import (
    CPU_PIXELS,
    Encoder,
    encode_batches,
    evaluation_mode,
    extract_features,
)
from fastreid_sskd.precision import Precision

STAGES = ("features", "labels", "steps", "evaluation")
#: targets: ours over the bare passes by precision; features and epoch of the plain way over ours, likewise
_BARE = {"float32": 1.15, "bfloat16": 1.2, "float16": 1.2}
_FEATURES = {"float32": 1.15, "bfloat16": 2.0, "float16": 2.0}
#: eps of both refreshes; random weights give no clusters worth an estimate
EPS = 0.5


class Epoch:
    """The three kinds of an epoch on the same images; each yields after every stage of :data:`STAGES`.

    Args:
        name: of a network in :data:`networks.NETWORKS`.
        folder: for the images.
        args: see :func:`rows`.
    """

    def __init__(self, name: str, folder: Path, args: argparse.Namespace):
        self.cfg = cfg = benchmark_config(
            name, args.device, batch=args.batch, size=args.size, peers=args.peers, steps=args.steps,
            dtype=args.precision, channels_last=args.channels_last,
        )  # fmt: skip
        use_device(args.device)
        torch.manual_seed(args.seed)
        self.model = build_model(cfg).train()
        self.plain_step = PlainStep(cfg, self.model)
        self.precision = Precision(cfg)
        self.precision.lay_out(self.model)
        self.items = write_crops(folder / "train", args.images, seed=args.seed)
        self.tests = write_crops(folder / "test", args.tests, seed=args.seed + 1)
        self.num_query = args.tests // 4
        self.labels = [identity for _, identity, _ in self.items]
        self.step = TrainingStep(
            self.model, build_optimizer(cfg, list(self.model.students)), self.precision,
            read_every=1 if self.precision.device_type == "cpu" else args.steps, epoch_length=args.steps,
        )  # fmt: skip
        self.loader = TargetLoader(cfg, self.items)
        classes = max(self.labels) + 1
        for networks in (self.model, self.plain_step.model):
            generator = torch.Generator().manual_seed(args.seed)
            centroids = F.normalize(torch.randn(classes, networks.centroid_size, generator=generator), dim=1)
            networks.reset_classifiers(centroids.to(networks.device))
        batch = cfg.SOLVER.IMS_PER_BATCH
        order = [place % len(self.items) for place in range(args.steps * batch)]
        rows = [(place, self.labels[place]) for place in order]
        self.draws = [rows[at : at + batch] for at in range(0, len(rows), batch)]
        given = next(plain_batches(cfg, self.items, self.draws[:1]))
        views = [self.model.pixels(given["images"][:, k]) for k in range(args.peers)]
        self.bare_step = BareStep(self.model, views, given["targets"].to(self.model.device), self.precision)
        self.ready = {"features": self._parts(self.items), "evaluation": self._parts(self.tests)}
        with evaluation_mode(self.model):
            encoder = Encoder(self.model, "ensemble", self.precision)
            self.bare_encoder = encoder.folded(self.ready["features"][0])

    def _parts(self, items: list) -> list[dict]:
        """Batches of the size that ours are computed in."""
        height, width = self.cfg.INPUT.SIZE_TEST
        on_cpu = self.precision.device_type == "cpu"
        size = CPU_PIXELS // (height * width) if on_cpu else self.cfg.TEST.IMS_PER_BATCH
        images = torch.cat([batch["images"] for batch in extraction_loader(self.cfg, items)])
        return [{"images": part} for part in images.split(max(1, size))]

    def ours(self) -> Iterator[str]:
        """As the run does it, one stage after the other."""
        cfg, model = self.cfg, self.model
        features = model.combine(extract_features(model, extraction_loader(cfg, self.items), self.precision))
        yield "features"
        pseudo_labels(features, options=ClusterOptions.from_cfg(cfg).replace(eps=EPS), device=model.device)
        yield "labels"
        reset_optimizer(self.step.optimizer)
        self.step.set_data_loader(self.loader.epoch(self.labels, cfg.SEED))
        for self.step.iter in range(cfg.SSKD.ITERS_PER_EPOCH):
            self.step.run_step()
            model.update_teachers(self.step.iter, cfg.SSKD.EMA.MOMENTUM)
        yield "steps"
        encoder = Encoder(model, "ensemble", self.precision)
        found = [
            [feature.cpu() for feature in [*each, encoder.combine(each)]]
            for _, each in encode_batches(encoder, extraction_loader(cfg, self.tests))
        ]
        for parts in zip(*found):
            evaluate_features(*self._sides(torch.cat(parts)), *self._test_labels())
        yield "evaluation"

    def plain(self) -> Iterator[str]:
        """In float32, without this package's loaders, features, clustering, step and ranking."""
        cfg, model = self.cfg, self.plain_step.model
        options = ClusterOptions.from_cfg(cfg)
        features = model.combine(self._plain_features(self.items))
        yield "features"
        sizes = {key: getattr(options, key) for key in ("k1", "k2", "variant", "min_samples")}
        dense_refresh(features.cpu().numpy(), eps=EPS, **sizes)
        yield "labels"
        for batch in plain_batches(cfg, self.items, self.draws):
            self.plain_step(batch, cfg.SSKD.EMA.MOMENTUM)
        yield "steps"
        each = self._plain_features(self.tests)
        for feature in [*each, model.combine(each)]:
            distances = build_dist(*self._sides(feature.cpu()), "cosine")
            with contextlib.redirect_stdout(io.StringIO()):  # the host prints a note on small galleries
                evaluate_py(distances, *self._test_labels(), 50, False)
        yield "evaluation"

    def bare(self) -> Iterator[str]:
        """The passes alone."""
        self._bare_passes("features")
        yield "features"
        yield "labels"
        for _ in range(self.cfg.SSKD.ITERS_PER_EPOCH):
            self.bare_step()
        yield "steps"
        self._bare_passes("evaluation")
        yield "evaluation"

    @torch.inference_mode()
    def _bare_passes(self, stage: str) -> None:
        for part in self.ready[stage]:
            self.bare_encoder.each(part)

    @torch.no_grad()
    def _plain_features(self, items: list) -> list[torch.Tensor]:
        model, size = self.plain_step.model.eval(), self.cfg.TEST.IMS_PER_BATCH
        transform = build_transforms(self.cfg, is_train=False)
        found = []
        for start in range(0, len(items), size):
            images = torch.stack([transform(read_image(path)) for path, *_ in items[start : start + size]])
            found.append(model.teacher_features({"images": images}))
        model.train()
        return [torch.cat(parts) for parts in zip(*found)]

    def _sides(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features[: self.num_query], features[self.num_query :]

    def _test_labels(self) -> list[np.ndarray]:
        """Identities and cameras of queries and gallery; every query has matches."""
        order = np.arange(len(self.tests))
        values = (order % self.num_query, order // self.num_query % 2)
        return [side for each in values for side in (each[: self.num_query], each[self.num_query :])]


def rows(args: argparse.Namespace) -> list[Row]:
    """Five rows a network, one for each stage and one for the epoch.

    Args:
        args: ``models``, ``images``, ``tests``, ``steps``, ``batch``, ``size``, ``peers``, ``repeats``,
            ``precision``, ``channels_last``, ``device``, ``seed``.
    """
    return [row for name in args.models for row in measure_epoch(name, args)]


def measure_epoch(name: str, args: argparse.Namespace) -> list[Row]:
    """Measure ``args.repeats`` rounds of the three kinds, after one that does not count."""
    with tempfile.TemporaryDirectory() as folder, EventStorage(0):
        epoch = Epoch(name, Path(folder), args)
        kinds: dict[str, Callable[[], Iterator[str]]] = {
            "ours": epoch.ours, "plain": epoch.plain, "bare": epoch.bare,
        }  # fmt: skip
        wall: dict = {kind: {stage: [] for stage in STAGES} for kind in kinds}
        cpu, memory = ({kind: {stage: [] for stage in STAGES} for kind in kinds}, dict.fromkeys(kinds, 0.0))
        for number in range(1 + args.repeats):
            names = list(kinds)
            for kind in names[number % 3 :] + names[: number % 3]:
                peak = _Peak(args.device)
                stages = kinds[kind]()
                for stage in STAGES:
                    start = time.perf_counter(), time.process_time()
                    next(stages)
                    peak.wait()
                    if number:
                        wall[kind][stage].append(time.perf_counter() - start[0])
                        cpu[kind][stage].append(time.process_time() - start[1])
                memory[kind] = max(memory[kind], peak.megabytes())
    return _rows(name, args, epoch, wall, cpu, memory)


class _Peak:
    """Peak memory from now on: of tensors on CUDA, else resident above what there is now."""

    def __init__(self, device: str):
        self.on_cuda = torch.device(device).type == "cuda"
        if self.on_cuda:
            torch.cuda.reset_peak_memory_stats()
        self.resident = ResidentMemory()

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_cuda:
            torch.cuda.synchronize()

    def megabytes(self) -> float:
        """MB of 2**20 bytes."""
        return (torch.cuda.max_memory_allocated() if self.on_cuda else self.resident.peak()) / 2**20


def _rows(
    name: str, args: argparse.Namespace, epoch: Epoch, wall: dict, cpu: dict, memory: dict[str, float]
) -> list[Row]:
    for seconds in (wall, cpu):
        for stages in seconds.values():
            stages["epoch"] = [sum(parts) for parts in zip(*(stages[stage] for stage in STAGES))]
    kind, cfg = epoch.precision.name, epoch.cfg
    images = {
        "features": args.images, "evaluation": args.tests, "steps": args.steps * cfg.SOLVER.IMS_PER_BATCH,
    }  # fmt: skip
    height, width = cfg.INPUT.SIZE_TRAIN
    found = []
    for stage in (*STAGES, "epoch"):
        ratios = {
            (what, one, other): statistics.median(
                a / b for a, b in zip(seconds[one][stage], seconds[other][stage])
            )
            for what, seconds in (("wall", wall), ("CPU", cpu))
            for one, other in (("ours", "bare"), ("plain", "ours"))
            if seconds[other][stage][0] and stage in images or stage == "epoch" or other == "ours"
        }

        def said(one: str, other: str, ratios=ratios) -> str:
            return f"{ratios['wall', one, other]:.2f} ({ratios['CPU', one, other]:.2f} of CPU time)"

        target = f"plain / ours {said('plain', 'ours')}"
        if stage in ("features", "epoch") and not (stage == "epoch" and kind == "float32"):
            target += f" (>= {_FEATURES[kind]:g})"
        if stage != "labels":
            target += f"; ours / bare {said('ours', 'bare')}" + f" (<= {_BARE[kind]:g})" * (stage == "epoch")
        ours = statistics.median(wall["ours"][stage])
        note = f"{images[stage] / ours:.3g} images/s" if stage in images else ""
        if stage == "epoch":
            note = "peak MB: " + ", ".join(f"{kind} {memory[kind]:.0f}" for kind in ("ours", "plain"))
        found.append(
            Row(
                section="epoch",
                what=f"{stage}: {name}, K = {args.peers}, {height}x{width}, {kind}"
                + ", channels last" * epoch.precision.channels_last,
                unit="s",
                ours=ours,
                plain=statistics.median(wall["plain"][stage]),
                floor=None if stage == "labels" else statistics.median(wall["bare"][stage]),
                target=target,
                note=note,
                details={
                    "seconds": {kind: stages[stage] for kind, stages in wall.items()},
                    "cpu_seconds": {kind: stages[stage] for kind, stages in cpu.items()},
                    "peak_mb": memory,
                    "images": images.get(stage),
                },
            )
        )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = measure.parser(__doc__, repeats=3)
    measure.add_batch_options(parser)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=["osnet_x0_25", "resnet50"])
    parser.add_argument("--images", type=int, default=256, help="of the target, a multiple of 4")
    parser.add_argument("--tests", type=int, default=384, help="of query (a quarter) and gallery")
    parser.add_argument("--steps", type=int, default=8, help="of the epoch")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16", "auto"), default="float32",
        help="SSKD.PRECISION of our epoch and the bare passes; the plain epoch is float32",
    )  # fmt: skip
    parser.add_argument("--channels-last", action="store_true", help="SSKD.CHANNELS_LAST of the same two")
    return parser


if __name__ == "__main__":
    measure.main(_parser(), rows)
