"""Section "memory": what a training step keeps, computed from the tensors that its graphs save for the backward pass."""
import argparse
from collections.abc import Callable, Iterable

import torch
from fastreid.modeling import build_model
from torch.autograd.graph import saved_tensors_hooks

from ...modeling import SSKD
from .nets import benchmark_config
from .row import Row

__all__ = ["rows", "saved_bytes", "state_bytes"]

_GB = 1e9


def saved_bytes(forward: Callable[[], object], but: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of the storages that a forward pass's graph keeps until its backward pass; each storage counts once.

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
    return sum(storage.nbytes() for storage in storages.values())


def state_bytes(model: SSKD) -> dict[str, int]:
    """Bytes of what stays from step to step: both kinds of networks, the gradients, Adam's two moments."""
    def size(module: torch.nn.Module) -> int:
        return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))

    learned = sum(p.nbytes for p in model.students.parameters() if p.requires_grad)
    return {"students": size(model.students), "teachers": size(model.teachers), "gradients": learned, "moments": 2 * learned}


def rows(args: argparse.Namespace) -> list[Row]:
    """ResNet-50 peers at batch 64, 256x128, in float32: peer by peer ("ours"), all graphs at once ("plain"), state ("floor").

    Computed on the meta device, without data. Counted are weights, statistics, gradients, moments, views,
    saved tensors, and the gradients of two feature maps of the largest size; workspaces of kernels are not.
    """
    cfg = benchmark_config("resnet50", "cpu", batch=64, peers=args.peers)
    model = build_model(cfg)
    model.reset_classifiers(torch.zeros(args.classes, model.centroid_size))
    model = model.to("meta").train()
    batch, (height, width) = cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.SIZE_TRAIN
    given = {
        "images": torch.empty(batch, args.peers, 3, height, width, dtype=torch.uint8, device="meta"),
        "targets": torch.empty(batch, dtype=torch.long, device="meta"),
    }
    state = state_bytes(model)
    kept = sum(state.values())
    views = args.peers * batch * 3 * height * width * 4  # normalised; each student's graph refers to its own
    one_graph = (saved_bytes(lambda: model(given), but=model.parameters()) - views) // args.peers
    largest = batch * 256 * (height // 4) * (width // 4) * 4  # the first stage's output
    ours, plain = (kept + views + graphs * one_graph + 2 * largest for graphs in (1, args.peers))
    return [Row(
        section="memory",
        what=f"resnet50, K = {args.peers}, batch {batch}, {height}x{width}, float32",
        unit="GB",
        ours=ours / _GB, plain=plain / _GB, floor=kept / _GB,
        target=f"{ours / _GB:.1f} GB (<= 11)",
        note="computed, not measured; ours: one student's graph at a time, plain: all; floor: weights, gradients, moments",
        details={**state, "one_graph": one_graph, "views": views, "transient": 2 * largest},
    )]  # fmt: skip
