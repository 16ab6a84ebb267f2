"""Networks of timm as backbones: ``MODEL.BACKBONE.NAME: build_timm_backbone``, ``DEPTH`` names one."""

import logging
import re
import sys
from collections.abc import Mapping

import torch
from fastreid.config import CfgNode
from fastreid.layers import pooling
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn

from ..refusals import nearest, optional

logger = logging.getLogger("fastreid.sskd.timm")

#: pools of the host that clip negative values, which half of a token's are
_CLIPPING = (pooling.GeneralizedMeanPooling,)


class TimmBackbone:
    """What a network of timm gets as a backbone of fast-reid: a forward that returns maps (B, C, H, W).

    Convolutional maps are returned as they are, for the head's pool. Tokens of a transformer are pooled by
    the network itself to (B, C, 1, 1), as in its pre-training: by the class token in DeiT, CLIP and DINOv2,
    by the mean or by attention in others. Names of parameters stay timm's.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images (B, 3, H, W) to maps, or to a map of one place."""
        maps = self.forward_features(images)
        if maps.ndim == 3:
            maps = self.forward_head(maps, pre_logits=True)
        elif getattr(self, "output_fmt", "NCHW") == "NHWC":
            maps = maps.permute(0, 3, 1, 2)
        return maps if maps.ndim == 4 else maps[:, :, None, None]

    def from_other_layout(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename and resize weights by timm's own rules for this network: DINOv2, CLIP, MAE, other sizes.

        Raises:
            Exception: whatever timm raises on weights of another network.
        """
        convert = getattr(sys.modules[type(self).__module__], "checkpoint_filter_fn", None)
        return dict(convert(dict(state), self)) if convert else dict(state)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode) -> nn.Module:
    """Build a network of timm. Nothing is downloaded: weights are those of ``PRETRAIN_PATH``, or random.

    Read are of ``MODEL.BACKBONE`` ``DEPTH`` (timm's name, as ``vit_small_patch14_dinov2``), ``FEAT_DIM``,
    ``PRETRAIN``, ``PRETRAIN_PATH`` and ``LAST_STRIDE``: 1 asks for maps of 1/16 of the image's size, where
    the network can. A network with positions is built for ``INPUT.SIZE_TRAIN`` and takes other sizes where it
    can.

    Raises:
        ImportError: if timm is not installed.
        FileNotFoundError: if the weights are not there.
        ValueError: if timm has no such network, or it does not fit the images, ``FEAT_DIM`` or the head's
            pool; as :class:`.weights.WeightsError` if the weights are of another network.
    """
    options, size = cfg.MODEL.BACKBONE, tuple(cfg.INPUT.SIZE_TRAIN)
    model = _create(options.DEPTH, size, options.LAST_STRIDE)
    cls = type(model)
    # A class of its own, so that copies, names of parameters and the names in files stay timm's.
    model.__class__ = type(f"Timm{cls.__name__}", (TimmBackbone, cls), {"__module__": cls.__module__})
    channels, tokens = _drop_unused(model, size, options.DEPTH)
    if channels != options.FEAT_DIM:
        raise ValueError(
            f"MODEL.BACKBONE.FEAT_DIM is {options.FEAT_DIM}, and the features of timm's {options.DEPTH} have "
            f"{channels} values: set it to {channels}"
        )
    pool = getattr(pooling, cfg.MODEL.HEADS.POOL_LAYER, None)
    if tokens and isinstance(pool, type) and issubclass(pool, _CLIPPING):
        raise ValueError(
            f"MODEL.HEADS.POOL_LAYER {cfg.MODEL.HEADS.POOL_LAYER} clips negative values, and {options.DEPTH} "
            "pools its tokens itself: set it to Identity"
        )
    if options.PRETRAIN:
        from .weights import load_backbone  # which imports the peers

        if not options.PRETRAIN_PATH:
            raise FileNotFoundError(
                "MODEL.BACKBONE.PRETRAIN is on, and nothing is downloaded: set MODEL.BACKBONE.PRETRAIN_PATH "
                f"to a file of weights of timm's {options.DEPTH}, or MODEL.BACKBONE.PRETRAIN to False"
            )
        load_backbone(model, options.PRETRAIN_PATH)
    return model


def _create(name: str, size: tuple[int, int], last_stride: int) -> nn.Module:
    """Create a network by its name in timm, without a classifier, with those options that it has."""
    timm = optional(
        "timm",
        "MODEL.BACKBONE.NAME is build_timm_backbone, whose package is not installed: pip install timm "
        '(or "fastreid-sskd[timm]"), or choose one of fast-reid\'s backbones',
    )
    if not timm.is_model(name):  # also timm's hf-hub: names, which would be looked up on the network
        said = nearest(name, timm.list_models()) or "; timm.list_models() lists them"
        raise ValueError(
            f"MODEL.BACKBONE.DEPTH must name a network of timm {timm.__version__}; got {name!r}{said}"
        )
    wanted = {"img_size": size, "dynamic_img_size": True}
    if last_stride == 1:
        wanted["output_stride"] = 16
    left = dict(wanted)
    while True:
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0, **left)
            break
        except Exception as error:
            unknown = re.search(r"keyword argument '(\w+)'", str(error))
            option = unknown[1] if unknown and isinstance(error, TypeError) else "output_stride"
            if option not in left:
                raise ValueError(
                    f"timm's {name} cannot be built for INPUT.SIZE_TRAIN {size[0]} x {size[1]}, "
                    f"{type(error).__name__}: {error}"
                ) from error
            del left[option]
    given = ", ".join(f"{key} {value}" for key, value in left.items()) or "no options"
    logger.info("timm %s, %s: %s", timm.__version__, name, given)
    return model


def _drop_unused(model: nn.Module, size: tuple[int, int], name: str) -> tuple[int, bool]:
    """Remove layers that the features do not depend on: a norm or a convolution behind the classifier's pool.

    They would get no gradient, which distributed training refuses, and stay random in checkpoints.

    Returns:
        The channels of the maps, and whether these are tokens that the network has pooled.
    """
    images, parameters = torch.zeros(1, 3, *size), dict(model.named_parameters())
    try:
        with torch.enable_grad():
            model.eval()
            tokens = model.forward_features(images).ndim == 3
            maps = model(images)
            gradients = torch.autograd.grad(maps.sum(), list(parameters.values()), allow_unused=True)
    except Exception as error:
        raise ValueError(
            f"timm's {name} cannot take images of INPUT.SIZE_TRAIN {size[0]} x {size[1]}, "
            f"{type(error).__name__}: {error}{_fitting(model, size)}"
        ) from error
    model.train()
    unused = {key for key, gradient in zip(parameters, gradients) if gradient is None}
    for key in unused:
        path = key.rpartition(".")[0]
        parent, _, leaf = path.rpartition(".")
        if path and all(
            f"{path}.{other}" in unused for other, _ in model.get_submodule(path).named_parameters()
        ):
            setattr(model.get_submodule(parent), leaf, nn.Identity())
        else:  # beside parameters that are used
            parameters[key].requires_grad_(False)
    return maps.shape[1], tokens


def _fitting(model: nn.Module, size: tuple[int, int]) -> str:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is None or all(pixels % side == 0 for pixels, side in zip(size, patch)):
        return ""
    near = [max(round(pixels / side), 1) * side for pixels, side in zip(size, patch)]
    return f" Set INPUT.SIZE_TRAIN and SIZE_TEST to multiples of it, as {near}"
