"""Evaluation of every teacher and of the ensemble in one pass over the images."""
from collections import OrderedDict

import torch
from fastreid.config import CfgNode
from fastreid.evaluation import inference_on_dataset
from fastreid.evaluation.evaluator import DatasetEvaluator

from ..data.loaders import test_loader
from ..modeling import SSKD
from .evaluator import BlockwiseEvaluator
from .features import TeacherFeatures

__all__ = ["PeersEvaluator", "evaluate_peers", "peer_names"]


def peer_names(num_peers: int) -> list:
    """The rows of an evaluation: ``peer0`` ... and, with more than one, ``ensemble``."""
    names = [f"peer{k}" for k in range(num_peers)]
    return names + ["ensemble"] if num_peers > 1 else names


class PeersEvaluator(DatasetEvaluator):
    """One evaluator a teacher and one for the ensemble; takes the outputs of ``TeacherFeatures``."""

    def __init__(self, cfg: CfgNode, num_query: int, model: SSKD):
        self.model = model
        self.evaluators = OrderedDict((name, BlockwiseEvaluator(cfg, num_query)) for name in peer_names(model.num_peers))

    def reset(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def process(self, inputs: dict, outputs: torch.Tensor) -> None:
        features = outputs.split(self.model.feature_sizes, dim=1)
        for name, evaluator in self.evaluators.items():
            feature = self.model.combine(features) if name == "ensemble" else features[int(name[len("peer"):])]
            evaluator.process(inputs, feature)

    def evaluate(self) -> dict[str, dict[str, float]]:
        return OrderedDict((name, evaluator.evaluate()) for name, evaluator in self.evaluators.items())


def evaluate_peers(cfg: CfgNode, model: SSKD) -> dict[str, dict[str, dict[str, float]]]:
    """{data set: {peer or "ensemble": {"mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "metric"}}}, in percent."""
    results = OrderedDict()
    for name in cfg.DATASETS.TESTS:
        loader, num_query = test_loader(cfg, name)
        evaluator = PeersEvaluator(cfg, num_query, model)
        results[name] = inference_on_dataset(
            TeacherFeatures(model), loader, evaluator, flip_test=cfg.TEST.FLIP.ENABLED
        )
    return results
