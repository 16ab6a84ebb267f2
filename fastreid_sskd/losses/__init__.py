"""The losses of SSKD and of its relatives, as functions and as registered, weighted sets.

Importing this package registers the losses by name.
"""

from .cluster_contrast_loss import ClusterContrast, cluster_contrast
from .label_smooth_loss import LabelSmoothCE, label_smooth_cross_entropy
from .loss_set import LossSet, build_loss_set
from .multi_similarity_loss import MultiSimilarity, multi_similarity
from .nuclear_norm_loss import NuclearNorm, nuclear_norm
from .peer_batch import PeerBatch
from .peer_soft_triplet_loss import PeerSoftTriplet, peer_soft_triplet
from .registry import SSKD_LOSS_REGISTRY, PeerLoss, build_loss, known_losses
from .soft_cross_entropy_loss import SoftCE, soft_cross_entropy
from .soft_triplet_loss import SoftTriplet, soft_triplet

__all__ = [
    "SSKD_LOSS_REGISTRY",
    "ClusterContrast",
    "LabelSmoothCE",
    "LossSet",
    "MultiSimilarity",
    "NuclearNorm",
    "PeerBatch",
    "PeerLoss",
    "PeerSoftTriplet",
    "SoftCE",
    "SoftTriplet",
    "build_loss",
    "build_loss_set",
    "cluster_contrast",
    "known_losses",
    "label_smooth_cross_entropy",
    "multi_similarity",
    "nuclear_norm",
    "peer_soft_triplet",
    "soft_cross_entropy",
    "soft_triplet",
]
