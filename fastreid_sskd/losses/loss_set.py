"""A weighted set of losses, as a config names it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .gather import gather_batch
from .peer_batch import PeerBatch
from .registry import PeerLoss, build_loss


class LossSet:
    """Compute the weighted losses of one student; their sum is the student's share of the total.

    A loss of weight 0 is not computed. The method's total, (1 - w) L_id + w L_soft + w_ms L_ms + w_nn L_nn,
    is the sum over the peers for the weights (1 - w, w, w_ms, w_nn).

    Args:
        weighted_losses: (weight, loss) pairs.
        gather: with several processes, compute the losses of the whole batch in each, see :func:`.gather.gather_batch`;
            else each process computes those of its share.

    Attributes:
        active: the (weight, loss) pairs with a weight above 0, in the order given.
        requires: the optional fields of PeerBatch that the active losses read.

    Raises:
        ValueError: a weight is negative or not finite, none is above 0, or two losses share a short name.
    """

    def __init__(self, weighted_losses: Iterable[tuple[float, PeerLoss]], gather: bool = False) -> None:
        weighted_losses = [(float(weight), loss) for weight, loss in weighted_losses]
        seen: set[str] = set()
        for weight, loss in weighted_losses:
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"the weight of {type(loss).__name__} must be finite and >= 0, got {weight}")
            if loss.short_name in seen:
                raise ValueError(
                    f"two losses are called {loss.short_name!r}, and one would replace the other in the "
                    "total: name each loss once, or give a class of your own another short_name"
                )
            seen.add(loss.short_name)
        self.gather = gather
        self.active = [(weight, loss) for weight, loss in weighted_losses if weight > 0]
        if not self.active:
            raise ValueError("no loss has a weight above 0, so nothing would be trained: give one a weight")
        self.requires = frozenset(field for _, loss in self.active for field in loss.requires)

    def __call__(self, batch: PeerBatch, peer: int | None = None) -> dict[str, Tensor]:
        """Return the weighted scalars in the order given, keyed `loss_<short_name>[_peer<k>]`.

        Args:
            batch: one student's view of the step.
            peer: the student's index k >= 0, or None where there is only one network.

        Raises:
            ValueError: a loss needs a teacher's output that the batch does not have.
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


def build_loss_set(specs: Iterable[tuple[str, float, Mapping[str, Any] | None]], gather: bool = False) -> LossSet:
    """Build a LossSet from (registered name, weight, keyword parameters) triples.

    Every loss is constructed, those of weight 0 too, so that a wrong name or parameter does not wait for the
    day its weight is raised.

    Raises:
        ValueError: see build_loss and LossSet.
    """
    return LossSet([(weight, build_loss(name, params)) for name, weight, params in specs], gather)
