"""What a deployment runs: images to features by one teacher, or by all of them."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from fastreid.modeling.meta_arch import Baseline
from torch import nn

from ..modeling import SSKD, Peer, SSKDSource
from ..modeling.pixels import PixelNormalisation

__all__ = ["Deployed", "deployed"]


class Deployed(nn.Module):
    """Images (B, 3, H, W) to features (B, d) in evaluation mode; no labels, no losses, no batches of dicts.

    Args:
        networks: one network, or several whose features ``combine`` makes one of.
        pixels: normalises values of 0..255; None: the images come normalised.
        combine: of a list of features (B, d_k).
        unit_length: whether features are divided by their length.
    """

    def __init__(self, networks: Sequence[nn.Module], pixels: nn.Module | None, combine, unit_length: bool = False):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.pixels = pixels
        self.combine = combine
        self.unit_length = unit_length

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.pixels is not None:
            images = self.pixels(images)
        features = [network(images) for network in self.networks]
        feature = features[0] if len(features) == 1 else self.combine(features)
        return F.normalize(feature, dim=1) if self.unit_length else feature


def deployed(model: nn.Module, peer: str = "best", *, normalise_pixels: bool = True, unit_length: bool = False) -> Deployed:
    """The network that a model answers with, sharing its weights.

    Args:
        model: an ``SSKD``, an ``SSKDSource`` or fast-reid's ``Baseline`` (so MoCo and Distiller, which are ones).
        peer: of an ``SSKD``, what ``SSKD.EVAL_WITH`` takes: "best", "ensemble" or a number. Others have one network.
        normalise_pixels: whether it takes values of 0..255; False: normalised ones.
        unit_length: whether features are divided by their length; the ensemble's always are.

    Raises:
        TypeError: for another architecture.
        ValueError: if there is no such peer.
    """
    if isinstance(model, SSKD):
        chosen = model.chosen_peer(peer)
        networks = list(model.teachers) if chosen is None else [model.teachers[chosen]]
        mean, std, combine = model.pixels.mean, model.pixels.std, model.combine
    elif isinstance(model, (SSKDSource, Baseline)):
        if peer not in ("best", "0"):
            raise ValueError(f"a {type(model).__name__} has one network: leave peer at best, got {peer!r}")
        networks, combine = [Peer(model.backbone, model.heads)], None
        mean, std = (
            (model.pixels.mean, model.pixels.std) if isinstance(model, SSKDSource) else (model.pixel_mean, model.pixel_std)
        )
    else:
        raise TypeError(f"SSKD, SSKDSource and Baseline models can be exported, got a {type(model).__name__}")
    pixels = PixelNormalisation(mean.flatten().tolist(), std.flatten().tolist()) if normalise_pixels else None
    return Deployed(networks, pixels, combine, unit_length).to(mean.device).eval()
