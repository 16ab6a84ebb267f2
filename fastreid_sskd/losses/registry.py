"""The registry of losses, and how one is built from its name.

fast-reid has no loss registry. A project adds its own loss to this one:

    @SSKD_LOSS_REGISTRY.register()
    class Entropy(PeerLoss):
        short_name = "ent"

        def __call__(self, batch):
            return torch.distributions.Categorical(logits=batch.logits).entropy().mean()
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from fastreid.utils.registry import Registry
from torch import Tensor

from .peer_batch import PeerBatch

SSKD_LOSS_REGISTRY = Registry("SSKD_LOSS")
SSKD_LOSS_REGISTRY.__doc__ = """Losses by name: classes of PeerLoss, constructed with keyword parameters."""


class PeerLoss(ABC):
    """A loss of one student, constructed with its parameters and called with a PeerBatch.

    Attributes:
        short_name: names the loss in the log, as in `loss_<short_name>_peer0`.
        requires: the optional fields of PeerBatch that the loss reads.
        features_after_neck: the loss needs PeerBatch.features from behind the BN-neck (MODEL.HEADS.NECK_FEAT after).
        reads_logits: the loss trains the classifier by PeerBatch.logits; no such loss goes with one that moves it (`memory`).
    """

    short_name: str
    requires: tuple[str, ...] = ()
    features_after_neck: bool = False
    reads_logits: bool = True

    @abstractmethod
    def __call__(self, batch: PeerBatch) -> Tensor:
        """Return the loss of one student as a scalar tensor."""


def known_losses() -> list[str]:
    """Return the registered names, sorted."""
    # fast-reid 1.4.0's Registry can be asked for a name but not for its names.
    return sorted(SSKD_LOSS_REGISTRY._obj_map)


def build_loss(name: str, params: Mapping[str, Any] | None = None) -> PeerLoss:
    """Construct the loss registered as `name` with its keyword parameters.

    Raises:
        ValueError: the name is not registered (the known ones are listed), or the loss does not take one of
            the parameters or refuses its value.
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
