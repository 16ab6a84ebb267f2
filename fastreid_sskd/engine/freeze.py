"""Layers that do not learn during the first iterations, ``MODEL.FREEZE_LAYERS`` and ``SOLVER.FREEZE_ITERS``."""
import logging
from collections.abc import Iterable, Sequence

from fastreid.engine.train_loop import HookBase
from torch import nn

__all__ = ["FreezeLayers"]

logger = logging.getLogger("fastreid.sskd.freeze")


class FreezeLayers(HookBase):
    """Keeps layers without gradient and in evaluation mode, batch norm's statistics included; then lets them learn.

    Acts before every step, by the step's number alone: a resumed run, or one whose mode an evaluation has changed, goes on
    as it should. The host counts steps in the optimiser, from 0 again after a resume, and unfreezes batch norm with the
    first evaluation.

    Args:
        networks: those that have the layers; each student and each teacher of the peers.
        layers: names of a network's direct children.
        iters: steps that the layers stay frozen for.

    Raises:
        ValueError: if a network has no such layer.
    """

    def __init__(self, networks: Iterable[nn.Module], layers: Sequence[str], iters: int):
        self.iters = iters
        self.modules: list[nn.Module] = []
        for network in networks:
            children = dict(network.named_children())
            for layer in layers:
                if layer not in children:
                    raise ValueError(f"MODEL.FREEZE_LAYERS names {layer!r}, but the network has {', '.join(children)}")
                self.modules.append(children[layer])
        self._frozen: list[nn.Parameter] | None = None

    def before_step(self):
        if self.trainer.iter < self.iters:
            if self._frozen is None:
                self._frozen = [p for module in self.modules for p in module.parameters() if p.requires_grad]
                logger.info("%d layers are frozen for %d iterations", len(self.modules), self.iters)
            for parameter in self._frozen:
                parameter.requires_grad_(False)
                parameter.grad = None
            for module in self.modules:
                module.eval()
        elif self._frozen is not None:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            for module in self.modules:
                module.train()
            self._frozen = None
            logger.info("the frozen layers learn from now on")
