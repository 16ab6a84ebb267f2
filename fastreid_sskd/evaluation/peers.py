"""Evaluation of every teacher and of the ensemble in one pass over the images."""
from collections import OrderedDict

from fastreid.config import CfgNode

from ..data.loaders import test_loader
from ..modeling import SSKD
from .evaluator import BlockwiseEvaluator, evaluate_encoder
from .features import Encoder

__all__ = ["evaluate_peers", "peer_names"]


def peer_names(num_peers: int) -> list:
    """The rows of an evaluation: ``peer0`` ... and, with more than one, ``ensemble``."""
    names = [f"peer{k}" for k in range(num_peers)]
    return names + ["ensemble"] if num_peers > 1 else names


def evaluate_peers(cfg: CfgNode, model: SSKD) -> dict[str, dict[str, dict[str, float]]]:
    """{data set: {peer or "ensemble": {"mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "metric"}}}, in percent."""
    encoder = Encoder(model, "ensemble")
    results = OrderedDict()
    for name in cfg.DATASETS.TESTS:
        loader, num_query = test_loader(cfg, name)
        rows = peer_names(model.num_peers)
        evaluators = [BlockwiseEvaluator(cfg, num_query) for _ in rows]
        found = evaluate_encoder(encoder, loader, evaluators, flip=cfg.TEST.FLIP.ENABLED)
        results[name] = OrderedDict(zip(rows, found))
    return results
