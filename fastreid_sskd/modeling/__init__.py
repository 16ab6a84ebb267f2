"""The peers, their mean teachers and the two meta-architectures (registered by being imported)."""

from . import timm_backbone  # registers build_timm_backbone
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
