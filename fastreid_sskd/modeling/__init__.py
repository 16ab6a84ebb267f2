"""The peers, their mean teachers and the two meta-architectures (registered by being imported)."""

from . import timm_backbone  # noqa: F401  registers build_timm_backbone
from .bn_chunk import chunk_batch_norm
from .peer import Peer, build_peer, peer_config
from .source import SSKDSource
from .sskd import (
    SSKD,
    concatenated_feature,
    ema_decay,
    ema_momentum,
    ensemble_feature,
    update_teacher,
)
from .weights import load_source_weights

__all__ = [
    "SSKD",
    "Peer",
    "SSKDSource",
    "build_peer",
    "chunk_batch_norm",
    "concatenated_feature",
    "ema_decay",
    "ema_momentum",
    "ensemble_feature",
    "load_source_weights",
    "peer_config",
    "update_teacher",
]
