"""Losses of SSKD and of its relatives, as functions and as weighted sets; importing registers them."""

from .cluster_contrast_loss import ClusterContrast, cluster_contrast
from .label_smooth_loss import LabelSmoothCE, label_smooth_cross_entropy
from .loss_set import (
    SSKD_LOSS_REGISTRY,
    LossSet,
    PeerBatch,
    PeerLoss,
    build_loss,
    build_loss_set,
    build_losses,
    known_losses,
)
from .multi_similarity_loss import MultiSimilarity, multi_similarity
from .nuclear_norm_loss import NuclearNorm, nuclear_norm
from .soft_cross_entropy_loss import SoftCE, soft_cross_entropy
from .soft_triplet_loss import PeerSoftTriplet, SoftTriplet, peer_soft_triplet, soft_triplet
