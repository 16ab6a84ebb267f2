"""A meta-architecture of the host, or of a user, as a peer: its own way from images to features and logits."""
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.heads import ClasHead, EmbeddingHead
from fastreid.modeling.meta_arch import Baseline
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import nn

__all__ = ["architecture_forward", "build_architecture"]

# what the losses need of a network in training, under the names that the host's heads give it
_NEEDED = ("features", "cls_outputs", "pred_class_logits")


def build_architecture(cfg: CfgNode) -> nn.Module | None:
    """The model that ``SSKD.PEER_ARCHITECTURE`` names, made to give outputs instead of losses; None for a ``Baseline``.

    The model has the protocol of the host's ``Baseline``: a ``backbone``, a ``heads``, and a ``forward`` that calls
    ``self.preprocess_image(batch)`` first and in training ends with ``self.losses(outputs, ...)``. Both methods are
    replaced in this one object: the images come normalised, and the losses are SSKD's.

    Raises:
        ValueError: if there is no such architecture, or it has not one head (as MGN).
    """
    name = cfg.SSKD.PEER_ARCHITECTURE
    if name == "Baseline":
        return None
    if name in ("SSKD", "SSKDSource"):
        raise ValueError(f"SSKD.PEER_ARCHITECTURE must name one network, got {name}: give its own, or Baseline")
    try:
        architecture = META_ARCH_REGISTRY.get(name)
    except KeyError as error:
        message = f"SSKD.PEER_ARCHITECTURE {name!r} is not registered: import the module that registers it first"
        raise ValueError(message) from error
    model = architecture(cfg)
    if not (isinstance(getattr(model, "backbone", None), nn.Module) and hasattr(getattr(model, "heads", None), "cls_layer")):
        raise ValueError(
            f"SSKD.PEER_ARCHITECTURE {name} cannot be a peer: it needs a backbone and one head of the host, heads, whose "
            "feature is clustered and whose classifier follows the clusters"
        )
    if type(model.heads) is ClasHead:
        model.heads.__class__ = EmbeddingHead  # a ClasHead returns logits in evaluation
    if type(model).forward is Baseline.forward:
        return None  # backbone and head are all of it
    model.preprocess_image, model.losses = _images, _as_losses
    return model


def _images(batched_inputs: dict) -> torch.Tensor:
    return batched_inputs["images"]


def _as_losses(outputs: dict, *_: Any, **__: Any) -> dict:
    return outputs


def architecture_forward(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor | None
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Outputs of a model from :func:`build_architecture`, as those of a :class:`.peer.Peer`.

    Raises:
        TypeError: if it gives something else than the host's heads do.
    """
    outputs = model({"images": images} if targets is None else {"images": images, "targets": targets})
    fits = isinstance(outputs, dict) and set(_NEEDED) <= set(outputs) if model.training else torch.is_tensor(outputs)
    if not fits:
        raise TypeError(
            f"{type(model).__name__} is no peer: in training its forward has to end with self.losses(outputs, ...), where outputs "
            f"has {', '.join(_NEEDED)}, and in evaluation to return a tensor of features; got "
            f"{', '.join(outputs) if isinstance(outputs, dict) else type(outputs).__name__}"
        )
    return outputs
