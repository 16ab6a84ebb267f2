"""The config of one peer, where peers differ."""
from fastreid.config import CfgNode, get_cfg

from ..config import add_sskd_config
from ..config_values import merge_file
from ..refusals import said_of

__all__ = ["peer_config"]

# What a peer's own file decides; everything else, the size of the images included, is the run's.
_OWN = ("BACKBONE", "HEADS", "PIXEL_MEAN", "PIXEL_STD", "WEIGHTS")


def peer_config(cfg: CfgNode, k: int) -> CfgNode:
    """The run's config with the network of peer k: its file's in ``SSKD.PEERS``, or the same for all without any.

    Of the file (any fast-reid yml, ``_BASE_`` included) ``MODEL.BACKBONE``, ``MODEL.HEADS``, ``MODEL.PIXEL_MEAN``,
    ``MODEL.PIXEL_STD`` and ``MODEL.WEIGHTS``, where this peer starts, are taken, and its ``MODEL.META_ARCHITECTURE``
    becomes ``SSKD.PEER_ARCHITECTURE``. ``MODEL.HEADS.NECK_FEAT``, the feature
    that the losses see, stays the run's: it is the method's, not the network's.

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
    theirs = read_peer_file(cfg.SSKD.PEERS[k])
    neck_feat = cfg.MODEL.HEADS.NECK_FEAT
    for key in _OWN:
        cfg.MODEL[key] = theirs.MODEL[key]
    cfg.MODEL.HEADS.NECK_FEAT = neck_feat
    if theirs.MODEL.META_ARCHITECTURE not in ("SSKD", "SSKDSource"):  # of such a run the networks are meant
        theirs.SSKD.PEER_ARCHITECTURE = theirs.MODEL.META_ARCHITECTURE
    cfg.SSKD.PEER_ARCHITECTURE = theirs.SSKD.PEER_ARCHITECTURE
    return cfg


def read_peer_file(path: str) -> CfgNode:
    """A fast-reid yml over the host's defaults; it may have an SSKD section."""
    cfg = get_cfg()
    add_sskd_config(cfg)
    with said_of("SSKD.PEERS"):
        merge_file(cfg, path)
    return cfg
