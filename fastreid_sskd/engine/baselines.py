"""What an adaptation is compared with: from the same source weights, with the same network, views and steps."""
import copy
import itertools
from collections.abc import Iterable

import torch
from fastreid.config import CfgNode
from torch.optim.swa_utils import update_bn

from ..data import Item, extraction_loader
from ..modeling import SSKD, peer_config

__all__ = ["one_network_config", "reestimate_batch_norm", "supervised_config"]


def one_network_config(cfg: CfgNode) -> CfgNode:
    """One network that learns from hard pseudo-labels only: no peers, no soft labels, no averaging teacher.

    Differs from the SSKD config ``cfg`` in what SSKD adds: one peer, the weight of ``SoftCE`` given to
    ``LabelSmoothCE``, and a teacher that *is* the student (decay 0). Everything else, steps included, is the same.
    """
    cfg = copy.deepcopy(cfg)
    cfg.defrost()
    cfg.SSKD.NUM_PEERS = 1
    cfg.SSKD.PEERS = cfg.SSKD.PEERS[:1]
    cfg.SSKD.EVAL_WITH = "best"  # the only one
    cfg.SSKD.EMA.MOMENTUM = cfg.SSKD.EMA.WINDOW = 0.0
    cfg.SSKD.LOSSES.LabelSmoothCE.WEIGHT += cfg.SSKD.LOSSES.SoftCE.WEIGHT
    cfg.SSKD.LOSSES.SoftCE.WEIGHT = 0.0
    cfg.SSKD.LOSSES.PeerSoftTriplet.WEIGHT = 0.0
    return cfg


def supervised_config(cfg: CfgNode) -> CfgNode:
    """The upper bound: one network that is given the target's identities, from the same source weights and steps."""
    cfg = peer_config(one_network_config(cfg), 0)
    cfg.SSKD.PEERS = []
    cfg.MODEL.META_ARCHITECTURE = "SSKDSource"
    cfg.SSKD.SOURCE.BN_DATASETS = ()
    cfg.TEST.EVAL_PERIOD = cfg.SOLVER.MAX_EPOCH
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.SOLVER.MAX_EPOCH
    return cfg


@torch.no_grad()
def reestimate_batch_norm(cfg: CfgNode, model: SSKD, items: Iterable[Item]) -> None:
    """Replace every teacher's batch-norm statistics by those of the given images: the cheapest adaptation.

    Averages over full batches of ``TEST.IMS_PER_BATCH``, as PreciseBN does; weights and students stay as they are.

    Args:
        cfg: for the test transforms and the batch size.
        model: the peers; changed in place, its mode is restored.
        items: (path, identity, camera) of N images; identities are not used.
    """
    mode = model.training
    loader = extraction_loader(cfg, list(items))
    full = max(1, len(loader.dataset) // loader.batch_size)
    for teacher in model.teachers:
        batches = itertools.islice(loader, full)
        update_bn((model.pixels(batch["images"]) for batch in batches), teacher)
    model.train(mode)
