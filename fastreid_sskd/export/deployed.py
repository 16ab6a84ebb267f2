"""What a deployment runs: images to features as the model's evaluation gives them, by one teacher or by all of them."""
import copy

import torch
import torch.nn.functional as F
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import nn

from ..evaluation.features import Encoder, evaluation_mode
from ..modeling import SSKD
from ..modeling.peer import PixelNormalisation

__all__ = ["Deployed", "deployed"]


class Deployed(nn.Module):
    """Images (B, 3, H, W) to features (B, d), as they are exported: an :class:`Encoder` and what others may want otherwise.

    Args:
        model, peer: see :func:`deployed`.
        normalise_pixels: whether it takes values of 0..255; False: normalised ones.
        unit_length: whether features are divided by their length.

    Attributes:
        pixels: normalises images of 0..255 for this network; None where it does so itself.
    """

    def __init__(self, model: nn.Module, peer: str, normalise_pixels: bool, unit_length: bool):
        super().__init__()
        self.encoder = Encoder(model, peer)
        self.pixels = None
        if not normalise_pixels:
            self.encoder = copy.deepcopy(self.encoder)  # the model goes on with its own normalisation
            mean, std = _normalisation(self.encoder)
            self.pixels = PixelNormalisation(mean.flatten().tolist(), std.flatten().tolist()).to(mean.device)
            mean.zero_()
            std.fill_(1.0)
        self.unit_length = unit_length

        def evaluate(batch: dict) -> torch.Tensor:
            with evaluation_mode(model):
                if not isinstance(model, SSKD):
                    return model(batch)
                before, model.eval_with = model.eval_with, peer
                try:
                    return model(batch)
                finally:
                    model.eval_with = before

        self._evaluate = evaluate  # a function, since a copy of this network would copy the model too

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        feature = self.encoder(images)
        return F.normalize(feature, dim=1) if self.unit_length else feature

    @torch.no_grad()
    def expected(self, images: torch.Tensor) -> torch.Tensor:
        """The features (B, d) of images of 0..255 by the model's own evaluation of a loader's batch: what exports are compared with."""
        nobody = torch.zeros(len(images), dtype=torch.long)
        batch = {"images": images.clone(), "targets": nobody, "camids": nobody, "img_paths": [""] * len(images)}
        feature = self._evaluate(batch).float()
        return F.normalize(feature, dim=1) if self.unit_length else feature

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """Images of 0..255 as this network takes them."""
        return images if self.pixels is None else self.pixels(images)


def _normalisation(encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation that images of 0..255 are normalised with."""
    model = encoder if encoder.pixels is not None else encoder.networks[0]
    try:
        return (model.pixels.mean, model.pixels.std) if hasattr(model, "pixels") else (model.pixel_mean, model.pixel_std)
    except AttributeError:
        raise ValueError(
            f"a {type(model).__name__} has no pixel_mean and pixel_std, so its normalisation cannot be left out: take it inside"
        ) from None


def deployed(model: nn.Module, peer: str = "best", *, normalise_pixels: bool = True, unit_length: bool = False) -> Deployed:
    """The network that a model answers with, as its evaluation does; it shares the model's weights unless pixels come normalised.

    Args:
        model: any meta-architecture of fast-reid's registry: an ``SSKD``, an ``SSKDSource``, the host's, a user's own.
        peer: of an ``SSKD``, what ``SSKD.EVAL_WITH`` takes: "best", "ensemble" or a number. Others have one network.
        normalise_pixels: whether it takes values of 0..255; False: normalised ones.
        unit_length: whether features are divided by their length; the ensemble's always are.

    Raises:
        TypeError: if the model is no meta-architecture.
        ValueError: if there is no such peer, or the model's own normalisation cannot be found to be left out.
    """
    try:
        META_ARCH_REGISTRY.get(type(model).__name__)
    except KeyError:
        name = type(model).__name__
        raise TypeError(f"a model of fast-reid's registry of meta-architectures can be exported, got a {name}") from None
    return Deployed(model, peer, normalise_pixels, unit_length).eval()
