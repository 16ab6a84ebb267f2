"""The host's optimiser over one or several networks."""
from collections.abc import Sequence

import torch
from fastreid.config import CfgNode
from fastreid.solver import build as host
from torch import nn

__all__ = ["build_optimizer", "reset_optimizer"]


def build_optimizer(cfg: CfgNode, networks: Sequence[nn.Module]) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPT`` over the parameters of all networks, with the host's rules for each of them.

    The rules (``HEADS_LR_FACTOR``, weight decay of norms and biases) go by a parameter's name inside
    its network. Layers are frozen by :class:`.freeze.FreezeLayers`. The host makes a group of every parameter; groups
    of equal options are joined here and updated by torch's fused kernel where there is one, which reads every tensor
    once. ``contiguous=False``: the host's flat buffer never sees a gradient on torch >= 2.
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
        joined.setdefault(repr(sorted(options.items())), {**options, "params": []})["params"].extend(group["params"])
    optimizer.param_groups[:] = list(joined.values())
    if has_fused_kernel(type(optimizer), optimizer.param_groups):
        for group in optimizer.param_groups:
            group["fused"] = True
        optimizer._step_supports_amp_scaling = True  # what torch's constructor does: a scaler leaves inf and scale to the kernel
    kernels = [group.get("fused") for group in optimizer.param_groups]
    optimizer.register_load_state_dict_post_hook(lambda loaded: _keep_to_this_machine(loaded, kernels))
    return optimizer


def _keep_to_this_machine(optimizer: torch.optim.Optimizer, kernels: Sequence[bool | None]) -> None:
    """After a checkpoint of another device or memory layout: the kernels of this one, and a state that lies as they need it.

    A fused kernel walks a parameter and its moments side by side in memory, whatever their strides say, and counts its steps
    on its device; torch leaves them on the CPU where the checkpoint's kernel was another.
    """
    for group, fused in zip(optimizer.param_groups, kernels):
        if "fused" in group:
            group["fused"] = fused
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if fused and name == "step":
                    state[name] = value.to(parameter.device, torch.float32)
                elif torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def has_fused_kernel(kind: type[torch.optim.Optimizer], groups: Sequence[dict]) -> bool:
    """Whether torch can update all the groups' parameters by its fused kernel: asked of torch, which knows its devices."""
    try:
        kind([{"params": group["params"]} for group in groups], lr=0.0, fused=True)
    except (RuntimeError, TypeError):  # not on this device in this version, or an optimiser without one
        return False
    return True


def reset_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Forget all moments (method, refresh step 6: a fresh Adam). Hooks and schedulers keep the object they hold."""
    optimizer.state.clear()
    optimizer.zero_grad()
