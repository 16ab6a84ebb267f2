"""One peer network: a backbone and a head of the host, with a classifier that follows the number of clusters."""
import contextlib
from collections.abc import Iterator, Sequence

import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.heads import ClasHead, EmbeddingHead, build_heads
from torch import nn

from .architecture import architecture_forward, build_architecture
from .bn_chunk import chunk_batch_norm
from .pixels import renormalisation

__all__ = ["Peer", "build_peer"]


class Peer(nn.Module):
    """Backbone and head under the names that the host's ``Baseline`` gives them, so that its checkpoints load.

    In training it returns the head's dict: ``features`` (B, d) before the BN-neck, ``cls_outputs`` (B, C) the logits
    with the head's margin and ``pred_class_logits`` (B, C) without it. In evaluation it returns the feature after
    the BN-neck (B, d), not normalised. Training images without targets belong to nobody: they only move batch norm's statistics.

    Args:
        backbone: maps (B, 3, H, W) normalised images to feature maps (or tokens) that the head takes.
        heads: one of the host's heads; a ``ClasHead``, which would return logits in evaluation, is read as the
            ``EmbeddingHead`` that it extends.
        pixels: applied to the images first, for a network that was trained with another normalisation; without state.
        architecture: the model that backbone and heads are of, if its forward is more than these two; its other
            parameters become the peer's, under its names.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: nn.Module,
        pixels: nn.Module | None = None,
        architecture: nn.Module | None = None,
    ):
        super().__init__()
        self.__dict__["architecture"] = architecture  # not a child, whose names would get a prefix: one table for both
        if architecture is not None:
            for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
                self.__dict__[table] = architecture.__dict__[table]
        self.backbone = backbone
        self.heads = heads
        self.own_pixels = pixels

    def forward(
        self, images: torch.Tensor, targets: torch.Tensor | None = None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        if self.own_pixels is not None:
            images = self.own_pixels(images)
        if self.training and targets is None:
            targets = torch.full((len(images),), -1, device=images.device)  # the host's margin layers skip the label -1
        if self.architecture is not None:
            return architecture_forward(self.architecture, images, targets)
        maps = self.backbone(images)
        if isinstance(self.heads, ClasHead):
            return EmbeddingHead.forward(self.heads, maps, targets)
        return self.heads(maps, targets) if self.training else self.heads(maps)

    def train(self, mode: bool = True) -> "Peer":
        if self.architecture is not None:
            self.architecture.training = mode
        return super().train(mode)

    @contextlib.contextmanager
    def labelling(self) -> Iterator[None]:
        """Within, every layer is in evaluation mode, and the outputs are those of training: logits by running statistics."""
        outermost = [self, self.heads] if self.architecture is None else [self, self.heads, self.architecture]
        modes = [(module, module.training) for module in (*self.modules(), *outermost)]
        self.eval()
        for module in outermost:  # these alone say what is returned
            module.training = True
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    @property
    def num_classes(self) -> int:
        """C, the number of rows of the classifier."""
        return self.heads.weight.shape[0]

    @property
    def feature_size(self) -> int:
        """d, the size of a feature and of the classifier's rows."""
        return self.heads.weight.shape[1]

    @torch.no_grad()
    def reset_classifier(self, centroids: torch.Tensor) -> None:
        """Make the classifier's row j the centroid c_j (method, refresh step 5).

        The parameter object stays the same, whatever the number of rows, so an optimiser that holds it goes on;
        its state for it (moments of the old shape) has to be cleared by the caller.

        Args:
            centroids: (C, d) float, C >= 1, d the head's feature size.

        Raises:
            ValueError: if the sizes do not fit.
        """
        weight = self.heads.weight
        if centroids.ndim != 2 or centroids.shape[0] < 1 or centroids.shape[1] != weight.shape[1]:
            raise ValueError(
                f"a classifier takes centroids of shape (C >= 1, {weight.shape[1]}), got {tuple(centroids.shape)}"
            )
        weight.grad = None
        # While a graph of an earlier step is alive, autograd remembers the old number of rows and would refuse
        # the next gradient. Data of another type makes it forget, data of another shape does not.
        other = torch.float16 if weight.dtype != torch.float16 else torch.float32
        values = centroids.to(device=weight.device, dtype=weight.dtype, copy=True)
        weight.data = weight.data.new_empty(0, dtype=other)
        weight.data = values
        self.heads.cls_layer.num_classes = centroids.shape[0]

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # A checkpoint of another epoch has another number of clusters: take its size, do not skip its rows.
        saved = state_dict.get(prefix + "heads.weight")
        own = self.heads.weight
        if saved is not None and saved.shape != own.shape and saved.shape[1:] == own.shape[1:]:
            self.reset_classifier(saved)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def build_peer(cfg: CfgNode, normalisation: tuple[Sequence[float], Sequence[float]] | None = None) -> Peer:
    """Build one peer from ``MODEL.BACKBONE``, ``MODEL.HEADS`` and ``SSKD.PEER_ARCHITECTURE``.

    Its batch norm is in chunks of ``SSKD.BN_CHUNK``.

    Args:
        cfg: the peer's config.
        normalisation: (mean, std) that its images come normalised with, where that is not its own config's.

    A head without classes yet (``NUM_CLASSES`` 0) gets one, which the first refresh replaces.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.HEADS.NUM_CLASSES = max(cfg.MODEL.HEADS.NUM_CLASSES, 1)
    own = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    pixels = renormalisation(normalisation or own, own)
    architecture = build_architecture(cfg)
    if architecture is None:
        peer = Peer(build_backbone(cfg), build_heads(cfg), pixels)
    else:
        peer = Peer(architecture.backbone, architecture.heads, pixels, architecture)
    chunk_batch_norm(peer, cfg.SSKD.BN_CHUNK)
    return peer
