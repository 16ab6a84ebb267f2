"""Whether a config can work, before anything is written; what a run does not read is not checked."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from fastreid.config import CfgNode
from fastreid.layers import any_softmax, pooling
from fastreid.modeling import build_model
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import nn

from ..clustering import CLUSTERING_METHODS, ClusterOptions, check_options
from ..clustering.options import parts_read
from ..config import HOST, HOST_LOSSES, KEYS, Key, OneOf, check_value, value_of
from ..data.loaders import image_size
from ..modeling import peer_config
from .defaults import as_started, without_pretraining
from .hooks import FreezeLayers
from .train_step import build_optimizer

_HOST_DEPTHS = {
    "build_resnet_backbone": ("18x", "34x", "50x", "101x"),
    "build_resnext_backbone": ("50x", "101x"),
    "build_resnest_backbone": ("50x", "101x", "200x", "269x"),
    "build_osnet_backbone": ("x1_0", "x0_75", "x0_5", "x0_25"),
    "build_mobilenetv2_backbone": ("1.0x", "0.75x", "0.5x", "0.35x", "0.25x", "0.1x"),
    "build_mobilenetv3_backbone": ("Large", "Small"),
    "build_shufflenetv2_backbone": ("0.5x", "1.0x", "1.5x", "2.0x"),
    "build_repvgg_backbone": [
        *("A0", "A1", "A2", "B0"),
        *(f"B{n}{groups}" for n in (1, 2, 3) for groups in ("", "g2", "g4")),
    ],
    "build_regnet_backbone": [f"{n}{kind}" for n in (200, 400, 800, 1600, 3200, 4000, 6400) for kind in "xy"],
    "build_effnet_backbone": ("b0", "b1", "b2", "b3", "b4", "b5"),
    "build_vit_backbone": ("small", "base"),
}
#: settings that name an entry of a registry of fast-reid's or torch's, which may be registered later, so they
#: are looked up
_REGISTERED: dict[str, Callable[[CfgNode], Collection[str]]] = {
    # the host's registries have no other way to ask
    "MODEL.META_ARCHITECTURE": lambda cfg: META_ARCH_REGISTRY._obj_map,
    "MODEL.BACKBONE.NAME": lambda cfg: BACKBONE_REGISTRY._obj_map,
    "MODEL.BACKBONE.DEPTH": lambda cfg: _HOST_DEPTHS.get(
        cfg.MODEL.BACKBONE.NAME, (cfg.MODEL.BACKBONE.DEPTH,)
    ),
    "MODEL.HEADS.NAME": lambda cfg: REID_HEADS_REGISTRY._obj_map,
    "MODEL.HEADS.POOL_LAYER": lambda cfg: pooling.__all__,
    "MODEL.HEADS.CLS_LAYER": lambda cfg: any_softmax.__all__,
    "SOLVER.OPT": lambda cfg: [
        name
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name != "Optimizer"
    ],
    "SSKD.CLUSTER.METHOD": lambda cfg: CLUSTERING_METHODS,
}


def _is_read(cfg: CfgNode, key: Key) -> bool:
    architecture = cfg.MODEL.META_ARCHITECTURE
    if key.name == "SEED" and cfg.SEED == -1:  # stage 2 draws from it whatever it is
        return architecture == "SSKD"
    if key.read_by == "plain":
        found = META_ARCH_REGISTRY._obj_map.get(architecture)
        own_losses = found is not None and found.__module__.startswith("fastreid.")
        return own_losses if key.name == "MODEL.LOSSES.NAME" else architecture not in ("SSKD", "SSKDSource")
    stage_2 = {"stage 2", *parts_read(cfg.SSKD.CLUSTER.METHOD, cfg.SSKD.CLUSTER.EPS_RULE)}
    return not key.read_by or architecture == "SSKD" and key.read_by in stage_2


def check_settings(cfg: CfgNode, sections: str | tuple[str, ...] = "") -> None:
    """Check names, ranges and optional packages, whatever the data.

    Args:
        cfg: of any run.
        sections: only keys that begin so; "": all.

    Raises:
        ValueError: naming the key, its rule and its value.
        ImportError: if the clustering or the search for neighbours needs a package that is not installed.
    """
    for key in (*(Key(name, HOST, rule=OneOf(known(cfg))) for name, known in _REGISTERED.items()), *KEYS):
        if key.rule and key.name.startswith(sections) and _is_read(cfg, key):
            check_value(key.name, value_of(cfg, key.name), key.rule)
    if not sections:
        _check_losses(cfg)
        if cfg.MODEL.META_ARCHITECTURE == "SSKD":
            check_options(ClusterOptions.from_cfg(cfg))


def _check_losses(cfg: CfgNode) -> None:
    """The host's architectures need a loss, and its Distiller, for one of its own, a teacher."""
    architecture, kd = cfg.MODEL.META_ARCHITECTURE, cfg.KD
    if architecture in ("Baseline", "MGN") and not cfg.MODEL.LOSSES.NAME:
        raise ValueError(
            f"MODEL.LOSSES.NAME is empty, so a {architecture} would learn nothing: name one or more of "
            f"{', '.join(HOST_LOSSES)}"
        )
    if architecture != "Distiller":
        return
    if not kd.MODEL_CONFIG and not kd.EMA.ENABLED:
        raise ValueError(
            "a Distiller learns from teachers, and KD.MODEL_CONFIG names none: give their config files "
            "there and their weights in KD.MODEL_WEIGHTS, or set KD.EMA.ENABLED to True"
        )
    if len(kd.MODEL_CONFIG) != len(kd.MODEL_WEIGHTS):
        raise ValueError(
            f"KD.MODEL_CONFIG names {len(kd.MODEL_CONFIG)} teachers and KD.MODEL_WEIGHTS "
            f"{len(kd.MODEL_WEIGHTS)}: give a file of weights for each"
        )


def build_network(cfg: CfgNode) -> nn.Module:
    """The host's ``build_model``; what the config names wrongly is said in a sentence."""
    check_settings(cfg, "MODEL.META_ARCHITECTURE")
    for network in _networks(cfg):
        check_settings(network, "MODEL.")
    try:
        return build_model(cfg)
    # RuntimeError: also what is not implemented, and MGN's fixed sizes
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        said = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"the network that MODEL describes cannot be built, {type(error).__name__}: {said}"
        ) from error


def _networks(cfg: CfgNode) -> list[CfgNode]:
    """The configs of the different networks of a run."""
    peers = len(cfg.SSKD.PEERS) if cfg.MODEL.META_ARCHITECTURE == "SSKD" else 0
    return [peer_config(cfg, k) for k in range(peers)] or [cfg]


def check_network(cfg: CfgNode, num_classes: int) -> None:
    """Build the network on the CPU, with its losses, and give it one image of each size that it will see.

    Args:
        cfg: of any run.
        num_classes: of the training data, 0 where they are not known yet.
    """
    small = as_started(cfg) if cfg.MODEL.BACKBONE.PRETRAIN_PATH else without_pretraining(cfg)
    small = small.clone()
    small.defrost()
    small.MODEL.DEVICE = "cpu"
    small.MODEL.HEADS.NUM_CLASSES = small.MODEL.HEADS.NUM_CLASSES or num_classes
    model = build_network(small).eval()
    students = list(getattr(model, "students", []))
    if cfg.MODEL.FREEZE_LAYERS:
        if not cfg.SOLVER.FREEZE_ITERS:
            raise ValueError(
                f"MODEL.FREEZE_LAYERS {', '.join(cfg.MODEL.FREEZE_LAYERS)} would learn from the start, as "
                "SOLVER.FREEZE_ITERS is 0: set it to the iterations that they stay frozen for, or leave "
                "FREEZE_LAYERS empty"
            )
        FreezeLayers(students or [model], cfg.MODEL.FREEZE_LAYERS, cfg.SOLVER.FREEZE_ITERS)
    check_images(model, small, {tuple(cfg.INPUT.SIZE_TRAIN), tuple(image_size(cfg))})


def check_images(model: nn.Module, cfg: CfgNode, sizes: Iterable[Sequence[int]]) -> None:
    """Give each network of a model in evaluation mode one image of each size, (height, width) in pixels.

    Raises:
        ValueError: see :func:`check_network`.
    """
    networks, zero = list(getattr(model, "teachers", [])), torch.zeros(1).long()
    for network, its in zip(networks or [model], _networks(cfg)):
        for size in sizes:
            images = torch.zeros(1, 3, *size, device=cfg.MODEL.DEVICE)
            batch = {"images": images, "targets": zero, "camids": zero, "img_paths": [""]}
            _check_forward(network, its, images if networks else batch)


def _check_forward(network: nn.Module, cfg: CfgNode, batch: torch.Tensor | dict) -> None:
    backbone, head, maps = getattr(network, "backbone", None), getattr(network, "heads", None), []
    hooks = (
        [] if backbone is None else [backbone.register_forward_hook(lambda *given: maps.append(given[-1]))]
    )
    failure = None
    try:
        with torch.no_grad():
            network(batch)
    except Exception as error:  # noqa: BLE001 - whatever a network of anybody's raises
        failure = error
    for hook in hooks:
        hook.remove()
    if (
        isinstance(head, EmbeddingHead)
        and maps
        and torch.is_tensor(maps[-1])
        and cfg.MODEL.HEADS.POOL_LAYER not in ("Flatten", "Identity")
    ):
        channels, given = maps[-1].shape[1], cfg.MODEL.BACKBONE.FEAT_DIM
        if channels != given:
            raise ValueError(
                f"MODEL.BACKBONE.FEAT_DIM is {given}, and the maps of {cfg.MODEL.BACKBONE.NAME} "
                f"{cfg.MODEL.BACKBONE.DEPTH} have {channels} channels: set it to {channels}"
            )
    if failure is not None:
        height, width = (batch if torch.is_tensor(batch) else batch["images"]).shape[2:]
        raise ValueError(
            f"the network that MODEL describes fails on an image of {height} x {width} pixels, "
            f"{type(failure).__name__}: {failure}; compare INPUT.SIZE_TRAIN and SIZE_TEST"
        ) from failure


def check_optimizer(cfg: CfgNode) -> torch.optim.Optimizer:
    """Let the optimiser take a step with a network of three parameters, two of which are no matrices.

    Returns:
        The optimiser.
    """
    network = nn.Sequential(OrderedDict(backbone=nn.Conv2d(1, 1, 1, bias=False), heads=nn.BatchNorm2d(1)))
    try:
        optimizer = build_optimizer(cfg, [network])
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"SOLVER.OPT {cfg.SOLVER.OPT} cannot train a network with the settings of SOLVER, "
            f"{type(error).__name__}: {error}; Adam, AdamW and SGD can"
        ) from error
    return optimizer
