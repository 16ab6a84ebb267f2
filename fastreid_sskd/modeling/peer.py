"""One peer: a network of the host whose classifier follows the clusters; its config and its pixels."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.heads import ClasHead, EmbeddingHead, build_heads
from fastreid.modeling.meta_arch import Baseline
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import nn

from ..config import add_sskd_config
from ..config_values import merge_file
from ..refusals import said_of
from .bn_chunk import chunk_batch_norm

# Keys of MODEL that a peer's own file decides; all else, as the size of the images, is the run's.
_OWN = ("BACKBONE", "HEADS", "PIXEL_MEAN", "PIXEL_STD", "WEIGHTS")
# What the losses need of a network in training, under the names that the host's heads give it.
_NEEDED = ("features", "cls_outputs", "pred_class_logits")


class Peer(nn.Module):
    """A backbone and a head under the names of the host's ``Baseline``, so that its checkpoints load.

    In training it returns the head's dict: ``features`` (B, d) before the BN-neck, ``cls_outputs`` (B, C) the
    logits with the head's margin and ``pred_class_logits`` (B, C) without it. In evaluation it returns the
    feature after the BN-neck (B, d), not normalised. Training images without targets only update batch-norm
    statistics.

    Args:
        backbone: maps (B, 3, H, W) normalised images to feature maps (or tokens) that the head takes.
        heads: one of the host's heads; a ``ClasHead``, which would return logits in evaluation, is read as
            the ``EmbeddingHead`` that it extends.
        pixels: applied to the images first, for a network trained with another normalisation; without state.
        architecture: the model of backbone and heads, if its forward is more than these two. Its other
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
        # Not a child, whose names would get a prefix: both share their tables of children, parameters and
        # buffers.
        self.__dict__["architecture"] = architecture
        if architecture is not None:
            for table in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
                self.__dict__[table] = architecture.__dict__[table]
        self.backbone = backbone
        self.heads = heads
        self.own_pixels = pixels

    def forward(
        self, images: torch.Tensor, targets: torch.Tensor | None = None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return the head's outputs in training, the feature in evaluation."""
        if self.own_pixels is not None:
            images = self.own_pixels(images)
        if self.training and targets is None:  # the host's margin layers skip the label -1
            targets = torch.full((len(images),), -1, device=images.device)
        if self.architecture is not None:
            return _architecture_forward(self.architecture, images, targets)
        maps = self.backbone(images)
        if isinstance(self.heads, ClasHead):
            return EmbeddingHead.forward(self.heads, maps, targets)
        return self.heads(maps, targets) if self.training else self.heads(maps)

    def train(self, mode: bool = True) -> "Peer":
        """Set training or evaluation mode, of the architecture too."""
        if self.architecture is not None:
            self.architecture.training = mode
        return super().train(mode)

    @contextlib.contextmanager
    def labelling(self) -> Iterator[None]:
        """Label by running statistics: layers are in evaluation mode, the outputs those of training."""
        outermost = [self, self.heads] if self.architecture is None else [self, self.heads, self.architecture]
        modes = [(module, module.training) for module in (*self.modules(), *outermost)]
        self.eval()
        for module in outermost:  # these alone decide what is returned
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
        """Make row j of the classifier the centroid c_j (method, refresh step 5).

        The parameter object stays the same, whatever the number of rows, so an optimiser may keep it. The
        caller has to clear the optimiser's state for it, whose moments have the old shape.

        Args:
            centroids: (C, d) float, C >= 1, d the head's feature size.

        Raises:
            ValueError: if the sizes do not fit.
        """
        weight = self.heads.weight
        if centroids.ndim != 2 or centroids.shape[0] < 1 or centroids.shape[1] != weight.shape[1]:
            raise ValueError(
                f"a classifier takes centroids of shape (C >= 1, {weight.shape[1]}), "
                f"got {tuple(centroids.shape)}"
            )
        weight.grad = None
        # While a graph of an earlier step is alive, autograd remembers the old number of rows and would
        # refuse the next gradient. Data of another type makes it forget, data of another shape does not.
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
    """Build one peer.

    Read are ``MODEL.BACKBONE``, ``MODEL.HEADS``, ``SSKD.PEER_ARCHITECTURE`` and ``SSKD.BN_CHUNK``.
    A head without classes yet (``NUM_CLASSES`` 0) gets one, which the first refresh replaces.

    Args:
        cfg: the peer's config.
        normalisation: (mean, std) that its images come normalised with, where that is not its own config's.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.HEADS.NUM_CLASSES = max(cfg.MODEL.HEADS.NUM_CLASSES, 1)
    own = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    pixels = _renormalisation(normalisation or own, own)
    architecture = _build_architecture(cfg)
    if architecture is None:
        peer = Peer(build_backbone(cfg), build_heads(cfg), pixels)
    else:
        peer = Peer(architecture.backbone, architecture.heads, pixels, architecture)
    chunk_batch_norm(peer, cfg.SSKD.BN_CHUNK)
    return peer


def peer_config(cfg: CfgNode, k: int) -> CfgNode:
    """Return the run's config with the network of peer k, from its file in ``SSKD.PEERS`` if there are any.

    The file (any fast-reid yml, ``_BASE_`` included) gives ``MODEL.BACKBONE``, ``MODEL.HEADS``,
    ``MODEL.PIXEL_MEAN``, ``MODEL.PIXEL_STD`` and ``MODEL.WEIGHTS``, where this peer starts. Its
    ``MODEL.META_ARCHITECTURE`` becomes ``SSKD.PEER_ARCHITECTURE``. ``MODEL.HEADS.NECK_FEAT``, the feature
    that the losses read, stays the run's: it belongs to the method, not to the network.

    Returns:
        A config of its own, not frozen.

    Raises:
        FileNotFoundError: if a peer's file is missing.
        ValueError: if there is no peer k.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if not cfg.SSKD.PEERS:
        return cfg
    if not 0 <= k < len(cfg.SSKD.PEERS):
        raise ValueError(f"SSKD.PEERS describes {len(cfg.SSKD.PEERS)} peers, there is no peer {k}")
    theirs = get_cfg()
    add_sskd_config(theirs)
    with said_of("SSKD.PEERS"):
        merge_file(theirs, cfg.SSKD.PEERS[k])
    theirs.MODEL.HEADS.NECK_FEAT = cfg.MODEL.HEADS.NECK_FEAT
    for key in _OWN:
        cfg.MODEL[key] = theirs.MODEL[key]
    cfg.SSKD.PEER_ARCHITECTURE = theirs.SSKD.PEER_ARCHITECTURE
    if theirs.MODEL.META_ARCHITECTURE not in ("SSKD", "SSKDSource"):  # of such a run the networks are meant
        cfg.SSKD.PEER_ARCHITECTURE = theirs.MODEL.META_ARCHITECTURE
    return cfg


# ---- a meta-architecture as a peer ---------------------------------------------------------------


def _build_architecture(cfg: CfgNode) -> nn.Module | None:
    """Build ``SSKD.PEER_ARCHITECTURE``, made to return outputs instead of losses; None for a ``Baseline``.

    The model has the protocol of the host's ``Baseline``: a ``backbone``, a ``heads``, and a ``forward`` that
    calls ``self.preprocess_image(batch)`` first and in training ends with ``self.losses(outputs, ...)``. Both
    methods are replaced in this one object: the images come normalised, and the losses are SSKD's.
    """
    name = cfg.SSKD.PEER_ARCHITECTURE
    if name == "Baseline":
        return None
    if name in ("SSKD", "SSKDSource"):
        raise ValueError(
            f"SSKD.PEER_ARCHITECTURE must name one network, got {name}: give its own, or Baseline"
        )
    try:
        architecture = META_ARCH_REGISTRY.get(name)
    except KeyError as error:
        raise ValueError(
            f"SSKD.PEER_ARCHITECTURE {name!r} is not registered: import the module that registers it first"
        ) from error
    model = architecture(cfg)
    heads = getattr(model, "heads", None)
    if not (isinstance(getattr(model, "backbone", None), nn.Module) and hasattr(heads, "cls_layer")):
        raise ValueError(
            f"SSKD.PEER_ARCHITECTURE {name} cannot be a peer: it needs a backbone and one head of the host, "
            "heads, whose feature is clustered and whose classifier follows the clusters"
        )
    if type(heads) is ClasHead:
        heads.__class__ = EmbeddingHead  # a ClasHead returns logits in evaluation
    if type(model).forward is Baseline.forward:
        return None  # backbone and head are all of it
    model.preprocess_image = lambda batch: batch["images"]
    model.losses = lambda outputs, *_, **__: outputs
    return model


def _architecture_forward(
    model: nn.Module, images: torch.Tensor, targets: torch.Tensor | None
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the outputs of a model from :func:`_build_architecture`, which are those of a :class:`Peer`."""
    outputs = model({"images": images} if targets is None else {"images": images, "targets": targets})
    is_dict = isinstance(outputs, dict)
    if not (is_dict and set(_NEEDED) <= set(outputs) if model.training else torch.is_tensor(outputs)):
        raise TypeError(
            f"{type(model).__name__} is no peer: in training its forward has to end with "
            f"self.losses(outputs, ...), where outputs has {', '.join(_NEEDED)}, and in evaluation to return "
            f"a tensor of features; got {', '.join(outputs) if is_dict else type(outputs).__name__}"
        )
    return outputs


# ---- pixels --------------------------------------------------------------------------------------


class PixelNormalisation(nn.Module):
    """(x - mean) / std per channel, out of place and on the module's device."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", _per_channel(mean, torch.float32), persistent=False)
        self.register_buffer("std", _per_channel(std, torch.float32), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images (B, 3, H, W), float or uint8 in 0..255, to float32 of the same shape."""
        return (images.to(self.mean.device, non_blocking=True) - self.mean) / self.std


class _Affine(nn.Module):
    def __init__(self, scale: torch.Tensor, shift: torch.Tensor):
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale + self.shift


def _per_channel(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).view(1, -1, 1, 1)


def _renormalisation(
    given: tuple[Sequence[float], Sequence[float]], wanted: tuple[Sequence[float], Sequence[float]]
) -> nn.Module | None:
    """Map images normalised with one (mean, std) to another's normalisation; None if the two agree."""
    mean, std = (_per_channel(values, torch.float64) for values in given)
    own_mean, own_std = (_per_channel(values, torch.float64) for values in wanted)
    if torch.equal(mean, own_mean) and torch.equal(std, own_std):
        return None
    return _Affine((std / own_std).float(), ((mean - own_mean) / own_std).float())
