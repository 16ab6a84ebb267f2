#!/usr/bin/env python3
"""Compute the memory of a training step from the tensors that its graphs save for the backward pass.

benchmarks/memory.py --peers 3 --classes 500
"""

import argparse
from collections.abc import Callable, Iterable

import measure
import torch
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from measure import Row
from networks import benchmark_config
from torch.autograd.graph import saved_tensors_hooks

from fastreid_sskd.modeling import SSKD

_GB = 1e9


def saved_sizes(forward: Callable[[], object], but: Iterable[torch.Tensor] = ()) -> list[int]:
    """Bytes of each storage that a forward pass's graph keeps until its backward pass.

    Works on the meta device, where nothing is computed.

    Args:
        forward: returns what holds the graph.
        but: tensors that are there anyway, as parameters are.
    """
    known = {tensor.untyped_storage()._cdata for tensor in but}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # held, so that no other gets its number
        if storage._cdata not in known:
            storages[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return [storage.nbytes() for storage in storages.values()]


def state_bytes(model: SSKD) -> dict[str, int]:
    """Bytes of what stays from step to step: both kinds of networks, the gradients, Adam's two moments."""

    def size(module: torch.nn.Module) -> int:
        return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))

    learned = sum(p.nbytes for p in model.students.parameters() if p.requires_grad)
    return {
        "students": size(model.students),
        "teachers": size(model.teachers),
        "gradients": learned,
        "moments": 2 * learned,
    }


def step_bytes(cfg: CfgNode, classes: int) -> dict[str, int]:
    """What a step in float32 takes, part by part; their sum is the most there is at once.

    Computed on the meta device, without data. "one_graph" is what the graph of one student keeps. "transient"
    are the gradients of two feature maps of the largest size. Workspaces of kernels are not counted.

    Args:
        cfg: of an ``SSKD`` of equal peers.
        classes: C, pseudo-identities.
    """
    model = build_model(cfg)
    model.reset_classifiers(torch.zeros(classes, model.centroid_size))
    state = state_bytes(model)
    model = model.to("meta").train()
    batch, peers, (height, width) = cfg.SOLVER.IMS_PER_BATCH, model.num_peers, cfg.INPUT.SIZE_TRAIN
    given = {
        "images": torch.empty(batch, peers, 3, height, width, dtype=torch.uint8, device="meta"),
        "targets": torch.empty(batch, dtype=torch.long, device="meta"),
    }
    views = peers * batch * 3 * height * width * 4  # normalised; each student's graph refers to its own
    saved = saved_sizes(lambda: model(given), but=model.parameters())
    return {**state, "views": views, "one_graph": (sum(saved) - views) // peers, "transient": 2 * max(saved)}


def rows(args: argparse.Namespace) -> list[Row]:
    """ResNet-50 peers at batch 64, 256x128, in float32.

    Peer by peer ("ours"), all graphs at once ("plain"), state ("floor").
    """
    cfg = benchmark_config("resnet50", "cpu", batch=64, peers=args.peers)
    parts = step_bytes(cfg, args.classes)
    ours = sum(parts.values())
    plain = ours + (args.peers - 1) * parts["one_graph"]
    floor = sum(parts[part] for part in ("students", "teachers", "gradients", "moments"))
    height, width = cfg.INPUT.SIZE_TRAIN
    return [
        Row(
            section="memory",
            what=f"resnet50, K = {args.peers}, batch {cfg.SOLVER.IMS_PER_BATCH}, {height}x{width}, float32",
            unit="GB",
            ours=ours / _GB,
            plain=plain / _GB,
            floor=floor / _GB,
            target=f"{ours / _GB:.1f} GB (<= 11)",
            note="computed, not measured; ours: one student's graph at a time, plain: all; floor: weights, "
            "gradients, moments",
            details=parts,
        )
    ]


if __name__ == "__main__":
    _parser = measure.parser(__doc__)
    _parser.add_argument("--peers", type=int, default=3, help="K")
    _parser.add_argument("--classes", type=int, default=500, help="C, clusters")
    measure.main(_parser, rows)
