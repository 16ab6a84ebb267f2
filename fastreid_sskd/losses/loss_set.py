"""The losses of one student: what a loss reads, the registry, and the weighted set that a config names.

The method's total is the sum over the peers of (1 - w) L_id + w L_soft + w_ms L_ms + w_nn L_nn.

fast-reid has no loss registry. A project adds its own loss to this one:

    @SSKD_LOSS_REGISTRY.register()
    class Entropy(PeerLoss):
        short_name = "ent"

        def __call__(self, batch):
            return torch.distributions.Categorical(logits=batch.logits).entropy().mean()
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from fastreid.config import CfgNode
from fastreid.utils import comm
from fastreid.utils.registry import Registry
from torch import Tensor

from .gather import gather_batch

SSKD_LOSS_REGISTRY = Registry("SSKD_LOSS")
SSKD_LOSS_REGISTRY.__doc__ = """Losses by name: classes of PeerLoss, constructed with keyword parameters."""


@dataclass
class PeerBatch:
    """One student's view of a training step: B images, D feature channels, C classes.

    Attributes:
        features: (B, D) pooled features of the student before the BN-neck.
        logits: (B, C) logits of the student.
        labels: (B,) integer identities or pseudo-labels in 0..C-1.
        teacher_features: (B, D) features of the student's own mean teacher on the same view. This and the
            following fields are None in source pre-training.
        teacher_logits: (B, C) logits of the student's own mean teacher on the same view.
        peer_teacher_features: (B, D) features of mean teacher k + 1 (cyclic) on view k + 1.
        peer_teacher_logits: (B, C) logits of mean teacher k + 1 (cyclic) on view k + 1.
        memory: (C, D) the student's classifier, for losses that keep one vector per cluster in it.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    teacher_features: Tensor | None = None
    teacher_logits: Tensor | None = None
    peer_teacher_features: Tensor | None = None
    peer_teacher_logits: Tensor | None = None
    memory: Tensor | None = None


class PeerLoss(ABC):
    """A loss of one student, constructed with its parameters and called with a PeerBatch.

    Attributes:
        short_name: names the loss in the log, as in `loss_<short_name>_peer0`.
        requires: optional fields of PeerBatch that the loss reads.
        features_after_neck: whether the loss needs features from behind the BN-neck (MODEL.HEADS.NECK_FEAT
            after).
        reads_logits: whether the loss trains the classifier, which excludes losses that move it (`memory`).
    """

    short_name: str
    requires: tuple[str, ...] = ()
    features_after_neck: bool = False
    reads_logits: bool = True

    @abstractmethod
    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student as a scalar tensor."""


class LossSet:
    """Compute the weighted losses of one student; a loss of weight 0 is not computed.

    Args:
        weighted_losses: (weight, loss) pairs.
        gather: compute the losses on the full batch of all ranks, see :func:`.gather.gather_batch`; otherwise
            each rank computes them on its own shard.

    Attributes:
        active: the (weight, loss) pairs with a weight above 0, in the order given.
        requires: optional fields of PeerBatch that the active losses read.

    Raises:
        ValueError: a weight is negative or not finite, none is above 0, or two losses share a short name.
    """

    def __init__(self, weighted_losses: Iterable[tuple[float, PeerLoss]], gather: bool = False) -> None:
        self.gather = gather
        self.active: list[tuple[float, PeerLoss]] = []
        seen: set[str] = set()
        for weight, loss in weighted_losses:
            weight = float(weight)
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"the weight of {type(loss).__name__} must be finite and >= 0, got {weight}")
            if loss.short_name in seen:
                raise ValueError(
                    f"two losses are called {loss.short_name!r}, and one would replace the other in the "
                    "total: name each loss once, or give a class of your own another short_name"
                )
            seen.add(loss.short_name)
            if weight > 0:
                self.active.append((weight, loss))
        if not self.active:
            raise ValueError("no loss has a weight above 0, so nothing would be trained: give one a weight")
        self.requires = frozenset(field for _, loss in self.active for field in loss.requires)

    def __call__(self, batch: PeerBatch, peer: int | None = None) -> dict[str, Tensor]:
        """Return the weighted scalars in the order given, keyed `loss_<short_name>[_peer<k>]`.

        Args:
            batch: one student's view of the step.
            peer: the student's index k >= 0, or None where there is only one network.
        """
        if self.gather:
            batch = gather_batch(batch, self.requires)
        suffix = "" if peer is None else f"_peer{peer}"
        values = {}
        for weight, loss in self.active:
            missing = [field for field in loss.requires if getattr(batch, field) is None]
            if missing:
                raise ValueError(
                    f"{type(loss).__name__} needs {', '.join(missing)}, which is None in this batch: set the "
                    "loss's weight to 0 where there are no teachers, as in source pre-training"
                )
            values[f"loss_{loss.short_name}{suffix}"] = weight * loss(batch)
        return values

    def __repr__(self) -> str:
        terms = (f"{weight:g} {type(loss).__name__}" for weight, loss in self.active)
        return f"LossSet({' + '.join(terms)})"


# ---- building ------------------------------------------------------------------------------------


def known_losses() -> list[str]:
    """Return the registered names, sorted."""
    # fast-reid 1.4.0's Registry can be asked for a name but not for its names.
    return sorted(SSKD_LOSS_REGISTRY._obj_map)


def build_loss(name: str, params: Mapping[str, Any] | None = None) -> PeerLoss:
    """Construct the loss registered as `name` with its keyword parameters.

    Raises:
        ValueError: the name is not registered, the loss has no such parameter, or refuses its value.
    """
    if name not in known_losses():
        raise ValueError(f"no loss is registered as {name!r}: known are {', '.join(known_losses())}")
    loss_class = SSKD_LOSS_REGISTRY.get(name)
    signature = inspect.signature(loss_class)
    try:
        signature.bind(**(params or {}))
    except TypeError as error:
        raise ValueError(f"parameters of the loss {name} must fit {signature}: {error}") from error
    return loss_class(**(params or {}))


def build_loss_set(
    specs: Iterable[tuple[str, float, Mapping[str, Any] | None]], gather: bool = False
) -> LossSet:
    """Build a LossSet from (registered name, weight, keyword parameters) triples.

    Losses of weight 0 are constructed too, so that a wrong name or parameter is an error at once.

    Raises:
        ValueError: see build_loss and LossSet.
    """
    return LossSet([(weight, build_loss(name, params)) for name, weight, params in specs], gather)


def build_losses(cfg: CfgNode) -> LossSet:
    """Build the losses of ``SSKD.LOSSES``: each node is a registered loss, its ``WEIGHT`` and its parameters.

    Raises:
        ValueError: a node has no ``WEIGHT``, a loss needs another ``MODEL.HEADS.NECK_FEAT``, one loss trains
            the classifier that another moves, ranks would move it apart, or see :func:`build_loss_set`.
    """
    specs = []
    for name, node in cfg.SSKD.LOSSES.items():
        if not isinstance(node, Mapping) or "WEIGHT" not in node:
            raise ValueError(
                f"SSKD.LOSSES.{name} must be a node with a WEIGHT (0: not computed), got {node!r}"
            )
        params = {key.lower(): value for key, value in node.items() if key != "WEIGHT"}
        specs.append((name, node.WEIGHT, params))
    losses = build_loss_set(specs, gather=cfg.SSKD.GATHER_LOSSES)
    active = {type(loss).__name__: loss for _, loss in losses.active}
    for name, loss in active.items():
        if loss.features_after_neck and cfg.MODEL.HEADS.NECK_FEAT != "after":
            raise ValueError(
                f"{name} takes features from behind the BN-neck, and MODEL.HEADS.NECK_FEAT is "
                f"{cfg.MODEL.HEADS.NECK_FEAT!r}: set it to after, or the loss's weight to 0"
            )
    moving = [name for name, loss in active.items() if "memory" in loss.requires]
    training = [name for name, loss in active.items() if loss.reads_logits]
    if moving and training:
        raise ValueError(
            f"{', '.join(moving)} moves the classifier, which {', '.join(training)} would train: set the "
            "WEIGHT of one side in SSKD.LOSSES to 0"
        )
    if moving and not losses.gather and comm.get_world_size() > 1:
        raise ValueError(
            f"{', '.join(moving)} moves each rank's classifier by the images that it sees, so that without "
            "SSKD.GATHER_LOSSES the ranks' models part: set it to True, or run one process"
        )
    return losses


# ---- inputs of a loss ----------------------------------------------------------------------------


def check_rows(name: str, rows: Tensor) -> None:
    """Check that features or logits are a floating-point (B, D) matrix, D >= 1."""
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise ValueError(
            f"{name} must be (batch, columns) with at least one column, got shape {tuple(rows.shape)}"
        )
    if not rows.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {rows.dtype}: cast it with .float()")


def check_labels(labels: Tensor, batch_size: int, num_classes: int | None = None) -> None:
    """Check that labels are (B,) integers, not negative and, if `num_classes` is given, below it.

    The range is checked on the CPU only: on an accelerator the comparison would stall the stream at every
    step, and the kernel of the cross entropy asserts the range.
    """
    if labels.dim() != 1 or labels.shape[0] != batch_size:
        raise ValueError(f"labels must have shape ({batch_size},), one a row, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}: cast them with .long()")
    if not labels.is_cpu or batch_size == 0:
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise ValueError(f"labels must be >= 0, got {lowest}: leave unlabelled images (-1) out of the batch")
    if num_classes is not None and highest >= num_classes:
        raise ValueError(
            f"labels must be below the number of classes {num_classes}, got {highest}: "
            "give the classifier as many active rows as there are identities"
        )


def zero_on_graph(rows: Tensor) -> Tensor:
    """Return a scalar 0 connected to `rows`, so that backward() works; NaN where a row is not finite."""
    return (rows * 0).sum()


Function = TypeVar("Function", bound=Callable[..., Tensor])


def full_precision(function: Function) -> Function:
    """Run a loss with autocast off and its half-precision tensors cast to float32; float64 stays float64.

    Casting alone is not enough: in an autocast region a product of float32 matrices runs in half precision,
    which moves cosine similarities by more than the mining margin's resolution.
    """

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            return value.float()
        return value

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with without_autocast(tensors[0].device.type) if tensors else nullcontext():
            return function(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return wrapper


def without_autocast(device_type: str) -> AbstractContextManager:
    """Switch autocast off inside an autocast region."""
    try:
        return torch.autocast(device_type, enabled=False)
    except RuntimeError:  # a device type without autocast; which ones depends on the torch version
        return nullcontext()
