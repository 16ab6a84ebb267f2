"""One training step: forward and backward passes, peer by peer, and the optimiser."""
import copy
import time
from collections.abc import Iterable

import torch
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.utils.events import EventStorage
from torch import nn

from ..losses import LossSet
from ..losses.loss_set import without_autocast
from ..modeling import SSKD
from ..processes import average_gradients
from .amp import Precision
from .compiling import backbones, compile_backbones
from .loss_record import LossRecord
from .memory import put_peak_memory
from .random_state import random_state, restore_random_state

__all__ = ["TrainingStep"]


class TrainingStep(SimpleTrainer):
    """The host's training step under a precision, on any device; ``grad_scaler`` is None where none is needed.

    The backward pass of each peer runs before the next student's forward pass, so that the activations of one student are
    in memory, not those of all. Losses stay on the device until they are read, several steps' at once.

    Args:
        model: an ``SSKD``, or one that returns its losses.
        optimizer: of its parameters.
        precision: of the forward passes.
        read_every: steps after which the losses are read; one that is not finite ends the run then, and in the step itself
            before the optimiser has moved. 1: in every step.
        epoch_length: steps of an epoch, whose last one's are read in any case.
        compiled: whether to compile the backbones, see :func:`.compiling.compile_backbones`.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, *,
                 read_every: int = 1, epoch_length: int = 1, compiled: bool = False):
        super().__init__(model, [], optimizer, param_wrapper=None)
        self.precision = precision
        self.losses = LossRecord()
        self.read_every = read_every
        self.epoch_length = epoch_length
        self._compile = compiled
        self._prepared = False

    @property
    def grad_scaler(self) -> object | None:
        """The precision's."""
        return self.precision.scaler

    def run_step(self):
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self._prepare(data)

        self.optimizer.zero_grad()
        losses = self._backward(self.model, data, self.grad_scaler)
        average_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self.losses.add(self.iter, losses, data_time)
        if not (self.iter + 1) % self.read_every or not (self.iter + 1) % self.epoch_length:
            self.losses.read()
            put_peak_memory(next(iter(losses.values())).device)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _backward(self, model: nn.Module, data: dict, scaler: object | None = None) -> dict[str, torch.Tensor]:
        """Add the gradients of a batch; its losses, without their graphs."""

        def run(losses: dict[str, torch.Tensor]) -> None:
            total = sum(losses.values())
            with without_autocast(self.precision.device_type):  # a backward pass takes the forward's types by itself
                (total if scaler is None else scaler.scale(total)).backward()

        with self.precision.autocast():
            if isinstance(model, SSKD):
                return model(data, run)
            losses = model(data)
        run(losses)
        return {name: loss.detach() for name, loss in losses.items()}

    def _prepare(self, data: dict) -> None:
        """Find out what takes a batch to: whether the model compiles, which precision is faster. On copies, at the first step."""
        if self._prepared:
            return
        self._prepared = True
        if not self._compile and self.precision.settled:
            return
        state = random_state()
        with EventStorage(self.iter):  # for a model that puts scalars, which are none of the run's
            compiled = self._compile and compile_backbones(self.model, self._copy(), lambda model: self._backward(model, data))
            if not self.precision.settled:
                copied = self._copy()
                for backbone in backbones(copied) if compiled else ():
                    backbone.compile()

                def step() -> None:
                    copied.zero_grad()
                    self._backward(copied, data)

                self.precision.settle(step)
        restore_random_state(state)

    def _copy(self) -> nn.Module:
        """The model, to be tried out: a step of it waits for no other process."""
        copied = copy.deepcopy(self.model)
        if isinstance(getattr(copied, "losses", None), LossSet):
            copied.losses.gather = False
        return copied

    def set_data_loader(self, data_loader: Iterable) -> None:
        """Go on with another loader; the old one's workers end with it."""
        self.data_loader = data_loader
        self._data_loader_iter = iter(data_loader)
