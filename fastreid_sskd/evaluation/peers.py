"""Evaluation of every teacher and of the ensemble in one pass over the images."""
from collections import OrderedDict

import torch
from fastreid.config import CfgNode

from ..data.loaders import test_loader
from ..modeling import SSKD
from .evaluator import BlockwiseEvaluator
from .features import Encoder, encode_batches

__all__ = ["evaluate_peers", "peer_names"]


def peer_names(num_peers: int) -> list:
    """The rows of an evaluation: ``peer0`` ... and, with more than one, ``ensemble``."""
    names = [f"peer{k}" for k in range(num_peers)]
    return names + ["ensemble"] if num_peers > 1 else names


@torch.no_grad()
def evaluate_peers(cfg: CfgNode, model: SSKD) -> dict[str, dict[str, dict[str, float]]]:
    """{data set: {peer or "ensemble": {"mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "metric"}}}, in percent."""
    encoder = Encoder(model, "ensemble")
    results = OrderedDict()
    for name in cfg.DATASETS.TESTS:
        loader, num_query = test_loader(cfg, name)
        evaluators = OrderedDict((row, BlockwiseEvaluator(cfg, num_query)) for row in peer_names(model.num_peers))
        for batch, features in encode_batches(encoder, loader, flip=cfg.TEST.FLIP.ENABLED):
            for evaluator, feature in zip(evaluators.values(), [*features, encoder.combine(features)]):
                evaluator.process(batch, feature)
        results[name] = OrderedDict((row, evaluator.evaluate()) for row, evaluator in evaluators.items())
    return results
