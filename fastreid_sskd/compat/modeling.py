"""Patches of the host's models: inputs left alone and on the right device, losses and weights that load."""

import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .patch import ModuleProxy, Patch, put, swap, target

META_ARCHES = (("baseline", "Baseline"), ("mgn", "MGN"))  # MoCo and Distiller inherit from Baseline


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a new dict with the tensors of ``batch`` on ``device``; anything but a dict as it is.

    The targets are always a copy: the host zeroes them in place when their sum is negative
    (meta_arch/baseline.py:110), and that must not reach the caller's batch.
    """
    if not isinstance(batch, Mapping):
        return batch
    moved = dict(batch)
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            moved[key] = value.to(device, non_blocking=True, copy=key == "targets")
    return moved


def call_on_own_device(self: nn.Module, batched_inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """`nn.Module.__call__` with the batch moved to the model's device, whatever `forward` a subclass has."""
    return nn.Module.__call__(self, to_device(batched_inputs, self.device), *args, **kwargs)


def preprocess_image(self: nn.Module, batched_inputs: Any) -> torch.Tensor:
    """Normalise B x 3 x H x W images in 0..255 into a new tensor on the model's device."""
    if isinstance(batched_inputs, Mapping):
        images = batched_inputs["images"]
    elif isinstance(batched_inputs, torch.Tensor):
        images = batched_inputs
    else:
        raise TypeError(f"batched_inputs must be a dict or a tensor, got {type(batched_inputs).__name__}")
    images = images.to(self.device, non_blocking=True)
    return images.sub(self.pixel_mean).div_(self.pixel_std)


def _patch_meta_arches(attribute: str, function: Callable[..., Any]) -> None:
    for module, name in META_ARCHES:
        put(f"fastreid.modeling.meta_arch.{module}", f"{name}.{attribute}", function)


def _one_class(host_loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return the host's cross entropy with its formula unchanged, and 0 (on the graph) for a single class."""

    @functools.wraps(host_loss)
    def cross_entropy_loss(
        pred_class_outputs: torch.Tensor, gt_classes: torch.Tensor, eps: float, alpha: float = 0.2
    ) -> torch.Tensor:
        if pred_class_outputs.size(1) == 1:
            return -F.log_softmax(pred_class_outputs, dim=1).sum()
        return host_loss(pred_class_outputs, gt_classes, eps, alpha)

    return cross_entropy_loss


def load_file(f: Any, map_location: Any = "cpu", **kwargs: Any) -> Any:
    """`torch.load` of a file that a builder of the host has downloaded: on the CPU, nothing but tensors."""
    from ..modeling.weights import read_file  # which imports the host

    return read_file(os.fspath(f))


def _patch_backbones_load() -> None:
    target("fastreid.modeling.backbones.resnet", "torch.load")
    for key, module in list(sys.modules.items()):
        if key.startswith("fastreid.modeling.backbones.") and vars(module).get("torch") is torch:
            module.torch = ModuleProxy(torch, load=load_file)


def _whole_backbone(host_build: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    """Return the host's `build_backbone`, which loads `PRETRAIN_PATH` in any layout, and whole or not at all.

    Builders that are not the host's load as they do.
    """

    @functools.wraps(host_build)
    def build_backbone(cfg: Any) -> nn.Module:
        from ..modeling.weights import load_backbone

        options = cfg.MODEL.BACKBONE
        registry = target("fastreid.modeling.backbones.build", "BACKBONE_REGISTRY")
        if not options.PRETRAIN or not registry.get(options.NAME).__module__.startswith("fastreid."):
            return host_build(cfg)
        if options.PRETRAIN_PATH:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.BACKBONE.PRETRAIN = False
            backbone = host_build(cfg)
            load_backbone(backbone, options.PRETRAIN_PATH)
            return backbone
        try:
            return host_build(cfg)  # downloads; fails without gdown, without a network, or without an address
        except (ModuleNotFoundError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name != "gdown":
                raise
            raise FileNotFoundError(
                "MODEL.BACKBONE.PRETRAIN is on, and MODEL.BACKBONE.PRETRAIN_PATH names no weights: set it "
                "to a file on disk, or install gdown so that fast-reid can download them, or set "
                "MODEL.BACKBONE.PRETRAIN to False"
            ) from error

    return build_backbone


def _whole_model(host_load: Callable[..., Any]) -> Callable[..., Any]:
    """Return the host's `Checkpointer.load`, which refuses a file without a whole backbone."""

    @functools.wraps(host_load)
    def load(self: Any, path: str, checkpointables: list[str] | None = None) -> Any:
        from ..modeling.weights import load_model

        if not path or not (hasattr(self.model, "backbone") or hasattr(self.model, "teachers")):
            return host_load(self, path, checkpointables)
        rest = load_model(self.model, path)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in rest:
                self.checkpointables[key].load_state_dict(rest.pop(key))
        return rest

    return load


def _patch_checkpointer() -> None:
    host_load = target("fastreid.utils.checkpoint", "Checkpointer.load")
    put("fastreid.utils.checkpoint", "Checkpointer.load", _whole_model(host_load))


def _patch_regnet_paths() -> None:
    """Let the RegNet and EffNet configurations be found from any working directory."""
    host_root = os.path.dirname(os.path.dirname(target("fastreid", "__file__")))
    for module, name in (("regnet", "regnet_cfg"), ("effnet", "effnet_cfg")):  # two names of one object
        target(f"fastreid.modeling.backbones.regnet.{module}", f"{name}.merge_from_file")
        config = target(f"fastreid.modeling.backbones.regnet.{module}", name)
        # On this node alone, past CfgNode.__setattr__, which takes configuration values only; yacs refuses to
        # merge into a node of a subclass.
        vars(config)["merge_from_file"] = functools.partial(_merge_from_host_file, config, host_root)


def _merge_from_host_file(config: Any, host_root: str, file_name: str) -> None:
    type(config).merge_from_file(config, os.path.join(host_root, file_name))


PATCHES = (
    Patch(
        "batch-device",
        "modeling/meta_arch/baseline.py:99, mgn.py:196",
        "models take batches already on their device; with loaders on the CPU the model moves them",
        lambda: _patch_meta_arches("__call__", call_on_own_device),
    ),
    Patch(
        "preprocess-image",
        "modeling/meta_arch/baseline.py:130, mgn.py:256",
        "normalises the caller's images in place, so TEST.FLIP normalises twice",
        lambda: _patch_meta_arches("preprocess_image", preprocess_image),
    ),
    Patch(
        "one-class",
        "modeling/losses/cross_entroy_loss.py:44",
        "ZeroDivisionError with a single class",
        lambda: swap("fastreid.modeling.losses.cross_entroy_loss", "cross_entropy_loss", _one_class),
    ),
    Patch(
        "pretrain-path",
        "modeling/backbones/*.py (torch.load)",
        "unpickles anything before torch 2.6; shufflenet and mobilenetv3 need the device that saved the file",
        _patch_backbones_load,
    ),
    Patch(
        "pretrained-backbone",
        "modeling/backbones/build.py:21",
        "PRETRAIN_PATH with other names, or of another network, leaves the backbone random and the log at "
        "INFO",
        lambda: swap("fastreid.modeling.backbones.build", "build_backbone", _whole_backbone),
    ),
    Patch(
        "checkpoint-load",
        "utils/checkpoint.py:93",
        "a file that shares no tensor with the model is loaded: a random network is evaluated",
        _patch_checkpointer,
    ),
    Patch(
        "regnet-config",
        "modeling/backbones/regnet/regnet.py:568, effnet.py:253",
        "the YAML path is relative to the working directory",
        _patch_regnet_paths,
    ),
)
