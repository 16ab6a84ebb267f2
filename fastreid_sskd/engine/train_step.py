"""One training step: forward and backward passes, peer by peer, and the optimiser."""

import logging
import math
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.solver import build as host
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage
from torch import nn

from ..losses.loss_set import without_autocast
from ..modeling import SSKD
from ..precision import Precision
from ..processes import average_gradients

logger = logging.getLogger("fastreid.sskd.train_step")


class TrainingStep(SimpleTrainer):
    """The host's training step under a precision, on any device.

    ``grad_scaler`` is None where none is needed.

    The backward pass of each peer runs before the next student's forward pass, so only one student's
    activations are in memory. Losses stay on the device until they are read, those of several steps at once.

    Args:
        model: an ``SSKD``, or one that returns its losses.
        optimizer: of its parameters.
        precision: of the forward passes.
        read_every: steps after which the losses are read; one that is not finite ends the run then, and with
            1 before the optimiser has moved.
        epoch_length: steps of an epoch, whose last one's are always read.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        read_every: int = 1,
        epoch_length: int = 1,
    ):
        super().__init__(model, [], optimizer, param_wrapper=None)
        self.precision = precision
        self.losses = LossRecord(precision.name)
        self.read_every = read_every
        self.epoch_length = epoch_length

    @property
    def grad_scaler(self) -> object | None:
        """The precision's."""
        return self.precision.scaler

    def run_step(self):
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        losses = self._backward(data)
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

    def _backward(self, data: dict) -> dict[str, torch.Tensor]:
        """Add the gradients of a batch; its losses, without their graphs."""

        def run(losses: dict[str, torch.Tensor]) -> None:
            total = sum(losses.values())
            with without_autocast(
                self.precision.device_type
            ):  # a backward pass takes the forward's types by itself
                (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()

        with self.precision.autocast():
            if isinstance(self.model, SSKD):
                return self.model(data, run)
            losses = self.model(data)
        run(losses)
        return {name: loss.detach() for name, loss in losses.items()}

    def set_data_loader(self, data_loader: Iterable) -> None:
        """Use another loader from now on; the old one's workers end with it."""
        self.data_loader = data_loader
        self._data_loader_iter = iter(data_loader)


def build_optimizer(cfg: CfgNode, networks: Sequence[nn.Module]) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPT`` over the parameters of all networks, with the host's rules for each of them.

    The rules (``HEADS_LR_FACTOR``, weight decay of norms and biases) go by a parameter's name inside
    its network. Layers are frozen by :class:`.hooks.FreezeLayers`. The host makes a group of every parameter;
    groups of equal options are joined here and updated by torch's fused kernel where there is one, which
    reads every tensor once. ``contiguous=False``: the host's flat buffer never sees a gradient on torch >= 2.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.FREEZE_ITERS = 0  # the host's counter of frozen steps is in no checkpoint
    optimizer, _ = host.build_optimizer(cfg, networks[0], contiguous=False)
    for network in networks[1:]:
        other, _ = host.build_optimizer(cfg, network, contiguous=False)
        for group in other.param_groups:
            optimizer.add_param_group(group)
    joined = {}
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key != "params"}
        joined.setdefault(repr(sorted(options.items())), {**options, "params": []})["params"].extend(
            group["params"]
        )
    optimizer.param_groups[:] = list(joined.values())
    if has_fused_kernel(type(optimizer), optimizer.param_groups):
        for group in optimizer.param_groups:
            group["fused"] = True
        optimizer._step_supports_amp_scaling = (
            True  # what torch's constructor does: a scaler leaves inf and scale to the kernel
        )
    kernels = [group.get("fused") for group in optimizer.param_groups]
    optimizer.register_load_state_dict_post_hook(lambda loaded: _keep_to_this_machine(loaded, kernels))
    return optimizer


def _keep_to_this_machine(optimizer: torch.optim.Optimizer, kernels: Sequence[bool | None]) -> None:
    """After a checkpoint of another device or memory layout.

    The kernels of this one, and a state that lies as they need it.

    A fused kernel walks a parameter and its moments side by side in memory, whatever their strides say, and
    counts its steps on its device; torch leaves them on the CPU where the checkpoint's kernel was another.
    """
    for group, fused in zip(optimizer.param_groups, kernels):
        if "fused" in group:
            group["fused"] = fused
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if fused and name == "step":
                    state[name] = value.to(parameter.device, torch.float32)
                elif (
                    torch.is_tensor(value)
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def has_fused_kernel(kind: type[torch.optim.Optimizer], groups: Sequence[dict]) -> bool:
    """Whether torch can update all the groups' parameters by its fused kernel.

    Asked of torch, which knows its devices.
    """
    try:
        kind([{"params": group["params"]} for group in groups], lr=0.0, fused=True)
    except (RuntimeError, TypeError):  # not on this device in this version, or an optimiser without one
        return False
    return True


def reset_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Forget all moments (method, refresh step 6: a fresh Adam).

    Hooks and schedulers keep the object they hold.
    """
    optimizer.state.clear()
    optimizer.zero_grad()


def compile_backbones(model: nn.Module) -> None:
    """Compile every module called ``backbone`` in place (``SSKD.COMPILE``); names of tensors stay.

    torch compiles when it sees the first batch. What it cannot do, for want of a C++ compiler or for an
    operation that it does not know, runs as it is, and torch logs why.
    """
    if not hasattr(nn.Module, "compile"):
        logger.warning("the backbones are not compiled: SSKD.COMPILE needs torch 2.2 or later")
        return
    torch._dynamo.config.suppress_errors = True
    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "backbone"]
    for backbone in found:
        backbone.compile()
    logger.info("%d backbones are compiled", len(found))


class LossRecord:
    """Keeps each step's losses as a tensor.

    :meth:`read` waits for the device once and puts them under their iterations.

    Reading a value makes the host wait for all that the device has been given so far. A record that is read
    every ``SSKD.LOG_PERIOD`` steps waits that often, and the event storage ends up the same.

    Args:
        precision: of the forward passes, for the advice of an error.
    """

    def __init__(self, precision: str = "float32") -> None:
        self.precision = precision
        self._steps: list[tuple[int, list[str], torch.Tensor, float]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses: dict[str, torch.Tensor], data_time: float) -> None:
        """Keep a step's losses, scalars on one device, and ``data_time``, seconds waited for its batch."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self._steps.append((step, list(losses), values, data_time))

    def read(self) -> None:
        """Move the kept losses into the current event storage, as means over the ranks.

        With several processes, all of them read at the same step.

        Raises:
            FloatingPointError: if a loss is not finite, naming the first such step, its losses and peers.
        """
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        values = iter(torch.cat([step[2] for step in steps]).tolist())
        found = [(step, {name: next(values) for name in names}, waited) for step, names, _, waited in steps]
        for step, losses, _ in found:
            _check_finite(step, losses, self.precision)
        everywhere = comm.gather(found)
        if comm.is_main_process():
            for of_all in zip(*everywhere):
                _put(of_all)


def _put(of_all: tuple[tuple[int, dict[str, float], float], ...]) -> None:
    """Put one step into the storage, given as every process has seen it."""
    step, losses, _ = of_all[0]
    storage = get_event_storage()
    now, storage.iter = storage.iter, step
    storage.put_scalar("data_time", float(np.max([waited for _, _, waited in of_all])))
    means = {name: float(np.mean([own[name] for _, own, _ in of_all])) for name in losses}
    storage.put_scalar("total_loss", sum(means.values()))
    if len(means) > 1:
        storage.put_scalars(**means)
    storage.iter = now


def _check_finite(step: int, losses: dict[str, float], precision: str) -> None:
    if all(map(math.isfinite, losses.values())):
        return
    named = []
    for name, value in losses.items():
        if not math.isfinite(value):
            loss, _, peer = name.partition("_peer")
            named.append(f"{loss} of peer {peer} is {value}" if peer else f"{loss} is {value}")
    cause = "Training has diverged"
    if precision == "float16":
        cause += (
            ", or the network overflows in float16, whose largest number is 65,504: bfloat16 as "
            "SSKD.PRECISION has float32's range"
        )
    raise FloatingPointError(
        f"step {step}: {', '.join(named)}. {cause}; the last checkpoint is of before. Lower "
        f"SOLVER.BASE_LR and resume from it (all losses: {losses})"
    )


def reset_peak_memory(device: torch.device | str) -> None:
    """Count from here on: an epoch's own peak, without the refresh before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def put_peak_memory(device: torch.device | str) -> None:
    """Put ``peak_memory_mb``, tensors' memory in MB of 2**20 bytes, into the current event storage.

    Nothing on the CPU.
    """
    if torch.device(device).type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20  # MB
        get_event_storage().put_scalar("peak_memory_mb", peak, smoothing_hint=False)
