"""The network that is exported, and the check that an export gives the same features."""

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import nn

from ..evaluation.features import Encoder, evaluation_mode
from ..modeling import SSKD
from ..modeling.peer import PixelNormalisation

#: the (mean, std), in units of 0..255, that values of pixels come normalised with; None: the model's own
PIXELS = {
    "0-255": (0.0, 1.0),
    "0-1": (0.0, 255.0),
    "normalised": None,
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
#: smallest cosine between a feature of a model and that of its export
COSINE = 0.9999


class Deployed(nn.Module):
    """Map images (B, 3, H, W) to features (B, d), as they are exported: an :class:`Encoder` with options.

    Args:
        model, peer, pixels, colours, unit_length: see :func:`deployed`.

    Attributes:
        pixels: maps images of 0..255 to the values that this network takes.
        takes: the same in words, for the metadata of an export.
    """

    def __init__(self, model: nn.Module, peer: str, pixels: str, colours: str, unit_length: bool):
        super().__init__()
        self.encoder = Encoder(model, peer)
        self.pixels = nn.Identity()
        self.takes = {"colour_order": colours, "pixel_values": pixels.replace("-", "..")}
        if pixels != "0-255":
            self.encoder = copy.deepcopy(self.encoder)  # the model goes on with its own normalisation
            mean, std = _normalisation(self.encoder)
            given = PIXELS[pixels] or (mean.flatten().tolist(), std.flatten().tolist())
            self.pixels = PixelNormalisation(
                *(torch.broadcast_to(torch.tensor(v), (3,)).tolist() for v in given)
            )
            self.pixels.to(mean.device)
            mean.sub_(self.pixels.mean).div_(self.pixels.std)
            std.div_(self.pixels.std)
            if pixels != "0-1":
                self.takes["pixel_values"] = "normalised: (value - pixel_mean) / pixel_std"
                self.takes["pixel_mean"], self.takes["pixel_std"] = map(list, given)
        self.flipped = colours == "BGR"
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
        """Map images, with pixels and colours as the export takes them, to one feature each."""
        # a model of the host's normalises in place, and a caller's images are to stay as they are
        feature = self.encoder(images.flip(1) if self.flipped else images.clone())
        return F.normalize(feature, dim=1) if self.unit_length else feature

    @torch.no_grad()
    def expected(self, images: torch.Tensor) -> torch.Tensor:
        """Compute what exports are compared with: the model's own evaluation of RGB images of 0..255."""
        nobody = torch.zeros(len(images), dtype=torch.long)
        batch = {
            "images": images.clone(),
            "targets": nobody,
            "camids": nobody,
            "img_paths": [""] * len(images),
        }
        feature = self._evaluate(batch).float()
        return F.normalize(feature, dim=1) if self.unit_length else feature

    def prepared(self, images: torch.Tensor) -> torch.Tensor:
        """RGB images of 0..255 as this network takes them."""
        images = self.pixels(images)
        return images.flip(1) if self.flipped else images


def _normalisation(encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation that images of 0..255 are normalised with."""
    model = encoder if encoder.pixels is not None else encoder.networks[0]
    try:
        return (
            (model.pixels.mean, model.pixels.std)
            if hasattr(model, "pixels")
            else (model.pixel_mean, model.pixel_std)
        )
    except AttributeError:
        raise ValueError(
            f"a {type(model).__name__} has no pixel_mean and pixel_std, so it takes values of 0..255 and no "
            "others: export it with --pixels 0-255, or for deepstream or openvino, which give these"
        ) from None


def deployed(
    model: nn.Module,
    peer: str = "best",
    *,
    pixels: str = "0-255",
    colours: str = "RGB",
    unit_length: bool = False,
) -> Deployed:
    """Make the network that a model answers with in evaluation.

    It shares the model's weights if ``pixels`` is "0-255".

    Args:
        model: any meta-architecture of fast-reid's registry: an ``SSKD``, an ``SSKDSource``, the host's, a
            user's own.
        peer: of an ``SSKD``, what ``SSKD.EVAL_WITH`` takes: "best", "ensemble" or a number. Others have one
            network.
        pixels: the values that it takes, a name of ``PIXELS``: "0-255", "0-1", "normalised" with the model's
            mean and standard deviation, or "imagenet" with ImageNet's, whatever the model's are.
        colours: their order, "RGB" or "BGR".
        unit_length: whether features are divided by their length; the ensemble's always are.

    Raises:
        TypeError: if the model is no meta-architecture.
        ValueError: if there is no such peer, or the model's own normalisation cannot be found to be changed.
    """
    try:
        META_ARCH_REGISTRY.get(type(model).__name__)
    except KeyError:
        name = type(model).__name__
        raise TypeError(
            f"a model of fast-reid's registry of meta-architectures can be exported, got a {name}"
        ) from None
    return Deployed(model, peer, pixels, colours, unit_length).eval()


def random_images(size: Sequence[int], batch: int = 4, seed: int = 0) -> torch.Tensor:
    """Draw images (batch, 3, H, W) of 0..255: smooth shapes with noise, so that features differ."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 8, 4, generator=generator)
    smooth = F.interpolate(coarse, size=tuple(size), mode="bilinear", align_corners=False)
    noise = torch.rand(batch, 3, *size, generator=generator)
    return ((0.8 * smooth + 0.2 * noise) * 255).round()


@torch.no_grad()
def check_parity(
    expected: Callable, exported: Callable, batches: Iterable[torch.Tensor], tolerance: float, what: str
) -> float:
    """Compare an exported model's features with the model's own.

    Args:
        expected: maps a batch of images on the CPU to features (B, d), a tensor: the model's own.
        exported: the same of what was exported, or an array. Gets a copy.
        batches: of images.
        tolerance: the largest difference of a feature allowed, relative to the largest feature.
        what: names the export in the error.

    Returns:
        The largest difference found, relative to the largest feature.

    Raises:
        RuntimeError: if it is above the tolerance, the features have another shape or are not finite, or the
            cosine of two is below .9999.
    """
    worst = 0.0
    for images in batches:
        mine = expected(images).float().cpu()
        theirs = torch.as_tensor(exported(images.clone())).float().cpu()
        largest = max(float(mine.abs().max()), torch.finfo().tiny)
        try:
            torch.testing.assert_close(theirs, mine, rtol=0, atol=tolerance * largest)
        except AssertionError as error:
            said = " ".join(str(error).split())
            raise RuntimeError(
                f"{what} gives other features than the model and is not usable: {said}"
            ) from error
        apart = (F.normalize(theirs, dim=1) - F.normalize(mine, dim=1)).square().sum(1).amax()
        if apart > 2 * (1 - COSINE):  # a cosine, and two features of zeros are alike
            raise RuntimeError(
                f"{what} gives features whose cosine to the model's is {1 - float(apart) / 2:.5f}, below "
                f"{COSINE}, and is not usable"
            )
        worst = max(worst, float((theirs - mine).abs().max()) / largest)
    return worst
