"""From images to features: the one way of the refresh, evaluation, prediction, report and export."""

import contextlib
import copy
import datetime
import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from fastreid.utils.logger import log_every_n_seconds
from torch import nn

from ..modeling import SSKD
from ..modeling.sskd import COMBINATIONS
from ..precision import Precision
from .folding import folded

logger = logging.getLogger("fastreid.sskd.evaluation")

#: pixels of the images that a CPU computes at once, 16 images of 256x128: its caches hold their feature maps
#: better than those of more (OSNet x0.25: 1.6 times as fast as 64)
CPU_PIXELS = 2**19


class Encoder(nn.Module):
    """Map images (B, 3, H, W) of 0..255 to the features (B, d), float32, of a model's evaluation.

    Of any model: a plain fast-reid one with whatever forward its meta-architecture has, an ``SSKDSource``, or
    the teachers of an ``SSKD``. The feature of one network is not normalised; the ensemble's has unit length,
    see ``SSKD.COMBINE``. Weights are the model's own, not copies.

    Args:
        model: what is evaluated.
        answer: which teacher of an SSKD model, as ``SSKD.EVAL_WITH``; "": the one that the model answers
            with. Others have one network: "", "best" or "0".
        precision: of the passes; None: float32.

    Attributes:
        networks: K of them for "ensemble", else one.
        names: theirs, for messages.

    Raises:
        ValueError: if there is no such teacher.
    """

    def __init__(self, model: nn.Module, answer: str = "", precision: Precision | None = None):
        super().__init__()
        if isinstance(model, SSKD):
            chosen = model.chosen_peer(answer or model.eval_with)
            peers = range(model.num_peers) if chosen is None else [chosen]
            self.networks = nn.ModuleList(model.teachers[k] for k in peers)
            self.names = [f"teacher {k}" for k in peers]
            self.pixels = model.pixels
            self.combination = COMBINATIONS[model.combination] if chosen is None else None
        elif answer in ("", "best", "0"):
            self.networks, self.names = nn.ModuleList([model]), ["the network"]
            self.pixels = self.combination = None  # it normalises images itself
        else:
            raise ValueError(
                f"a {type(model).__name__} has one network: leave the peer at best, got {answer!r}"
            )
        self.autocast = precision.autocast if precision else contextlib.nullcontext
        self.dtype = precision.dtype if precision else torch.float32
        self.training = model.training

    @torch.no_grad()
    def folded(self, batch: dict) -> "Encoder":
        """For many images: with copies of the networks in evaluation mode, see :func:`.folding.folded`.

        Args:
            batch: for :meth:`each`, of which the first image is used.
        """
        first = {key: values[:1] for key, values in batch.items()}
        given = first if self.pixels is None else self.pixels(first["images"])
        made = copy.copy(self)
        made._modules = dict(self._modules)  # its own, so that the next line leaves those of this one
        made.networks = nn.ModuleList(folded(network, given, self.dtype) for network in self.networks)
        return made

    def each(self, batch: dict) -> list[torch.Tensor]:
        """The feature (B, d_k) of every network, float32, not normalised.

        Args:
            batch: "images", and whatever else a plain model's forward reads.
        """
        given = batch if self.pixels is None else self.pixels(batch["images"])
        with self.autocast():
            return [network(given).float() for network in self.networks]

    def combine(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """One feature (B, d) of what :meth:`each` gives."""
        return self.combination(features) if self.combination else features[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images alone to one feature each."""
        return self.combine(self.each({"images": images}))


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode that every module had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # a module comes before those inside it
            module.train(mode)


class _Fitting:
    """The features of a batch, in as few parts as the device's memory allows, on a CPU its caches.

    A batch that does not fit is halved until it does, and so are those after it, so ``TEST.IMS_PER_BATCH``
    may be as large as one likes.
    """

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self.largest: int | None = None  # images at once

    def __call__(self, batch: dict) -> list[torch.Tensor]:
        if self.largest is None:
            self.encoder = self.encoder.folded(batch)
            height, width = batch["images"].shape[-2:]
            on_cpu = batch["images"].device.type == "cpu"
            self.largest = max(1, CPU_PIXELS // (height * width)) if on_cpu else len(batch["images"])
        while True:
            size = min(len(batch["images"]), self.largest)
            try:
                parts = self._in_parts_of(size, batch)
                # outside of inference mode, whose tensors autograd refuses
                return [torch.cat(part) for part in zip(*parts)]
            except torch.cuda.OutOfMemoryError:
                if size <= 1:
                    raise
            self.largest = size // 2
            torch.cuda.empty_cache()
            logger.warning(
                "features: %d images do not fit into the device's memory, going on with %d at a time: lower "
                "TEST.IMS_PER_BATCH to start with that", size, self.largest,
            )  # fmt: skip

    @torch.inference_mode()
    def _in_parts_of(self, size: int, batch: dict) -> list[list[torch.Tensor]]:
        count = len(batch["images"])
        if size == count:
            return [self.encoder.each(batch)]
        return [
            self.encoder.each({key: values[at : at + size] for key, values in batch.items()})
            for at in range(0, count, size)
        ]


def encode_batches(
    encoder: Encoder, loader: Iterable[dict], *, flip: bool = False
) -> Iterator[tuple[dict, list[torch.Tensor]]]:
    """Give every batch of a loader with the feature (B, d_k) of each network, in evaluation mode.

    Afterwards every module has the mode that it had.

    Args:
        encoder: says of which networks.
        loader: batches with "images" (B, 3, H, W), each entry of length B.
        flip: give the mean of the features of an image and of its mirror image, as ``TEST.FLIP`` asks for.

    Raises:
        FloatingPointError: after the last batch, if a feature was not finite.
    """
    features_of = _Fitting(encoder)
    wrong: list = [0] * len(encoder.networks)  # images; tensors, so that no batch waits for the device
    images, start = 0, time.monotonic()
    with evaluation_mode(encoder):
        for i, batch in enumerate(loader):
            features = features_of(batch)
            if flip:
                mirrored = features_of({**batch, "images": batch["images"].flip(dims=[3])})
                features = [(one + other) / 2 for one, other in zip(features, mirrored)]
            wrong = [
                count + (~torch.isfinite(feature)).any(dim=1).sum() for count, feature in zip(wrong, features)
            ]
            images += len(batch["images"])
            yield batch, features
            left = (time.monotonic() - start) / (i + 1) * (len(loader) - i - 1)
            log_every_n_seconds(
                logging.INFO,
                f"features: batch {i + 1}/{len(loader)}, {datetime.timedelta(seconds=round(left))} left",
                n=30,
                name="fastreid.sskd",
            )
    for name, count in zip(encoder.names, map(int, wrong)):
        if count:
            raise FloatingPointError(
                f"{name} gives features that are not finite for {count} of {images} images: look for NaN or "
                "inf in the weights file that it comes from; if that is good, its training has diverged"
            )


@torch.no_grad()
def encode_images(encoder: Encoder, loader: Iterable[dict], *, flip: bool = False) -> torch.Tensor:
    """Compute features (N, d) of N >= 1 images, float32 on the CPU, in the loader's order."""
    batches = encode_batches(encoder, loader, flip=flip)
    return torch.cat([encoder.combine(features).cpu() for _, features in batches])


@torch.no_grad()
def extract_features(
    model: SSKD, loader: Iterable[dict], precision: Precision | None = None
) -> list[torch.Tensor]:
    """f_k(x_i) of each teacher in one pass over the images, in the loader's order; see `encode_batches`.

    Args:
        model: the peers.
        loader: N images, each once; N may be 0.
        precision: of the passes; None: float32.

    Returns:
        K tensors (N, d_k), float32, on the model's device, not normalised.
    """
    encoder = Encoder(model, "ensemble", precision)
    parts = [[torch.empty(0, size, device=model.device)] for size in model.feature_sizes]
    for _, features in encode_batches(encoder, loader):
        for part, feature in zip(parts, features):
            part.append(feature)
    return [torch.cat(part) for part in parts]
