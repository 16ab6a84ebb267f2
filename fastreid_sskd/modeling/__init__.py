"""The peers, their mean teachers and the two meta-architectures (registered by being imported)."""
from .bn_chunk import chunk_batch_norm
from .ema import ema_decay, ema_momentum, update_teacher
from .ensemble import concatenated_feature, ensemble_feature
from .peer import Peer, build_peer
from .peer_config import peer_config
from .source import SSKDSource
from .sskd import SSKD
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
