"""Evaluation of a model on its test sets, without a matrix of all distances where the options allow it."""

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.evaluation import DatasetEvaluator, ReidEvaluator
from fastreid.evaluation.query_expansion import aqe
from fastreid.utils import comm
from tabulate import tabulate

from ..data.items import matched_queries
from ..data.loaders import test_loader
from ..modeling import SSKD
from ..precision import Precision
from ..processes import alone, control_group, in_all, on_main
from .features import Encoder, encode_batches
from .ranking import METRICS_IN_BLOCKS, distance_blocks, evaluate_blocks


class BlockwiseEvaluator(ReidEvaluator):
    """CMC, mAP and mINP as the host's ``ReidEvaluator`` gives them, without a matrix of all distances.

    Re-ranking and ROC need all distances at once and take the host's way, as does a metric that is neither
    cosine nor euclidean. ``TEST.AQE`` is the host's, whose own matrix is (Q + G) x (Q + G).
    """

    def evaluate(self) -> dict[str, float]:
        """Compute the metrics in percent, and "queries", the number of those that count.

        The main process ranks and tells all; an error of it is raised in all.
        """
        predictions = self._predictions
        if comm.get_world_size() > 1:
            # Patiently: the main process ranks for longer than a device's group waits.
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0, group=control_group())))
        return on_main(lambda: self._ranked(predictions))

    def _ranked(self, predictions: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        identities, cameras = (
            torch.cat([prediction[key] for prediction in predictions]) for key in ("pids", "camids")
        )
        sides = [slice(None, self._num_query), slice(self._num_query, None)]
        labels = [values[side].numpy() for values in (identities, cameras) for side in sides]
        test = self.cfg.TEST
        if test.RERANK.ENABLED or test.ROC.ENABLED or test.METRIC not in METRICS_IN_BLOCKS:
            results = self._by_the_host(predictions)
        else:
            features = torch.cat([prediction["feats"] for prediction in predictions])
            query, gallery = (features[side] for side in sides)
            if test.AQE.ENABLED:
                query, gallery = aqe(query, gallery, test.AQE.QE_TIME, test.AQE.QE_K, test.AQE.ALPHA)
            results = evaluate_features(query, gallery, *labels, metric=test.METRIC)
        counted = matched_queries(*(zip(labels[at].tolist(), labels[at + 2].tolist()) for at in range(2)))
        self._results = OrderedDict(results, queries=float(counted))
        return OrderedDict(self._results)

    def _by_the_host(self, predictions: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """The host's evaluation of what all processes have predicted, in the main one alone."""
        own, self._predictions = self._predictions, predictions
        try:
            with alone():
                return super().evaluate()
        finally:
            self._predictions = own


@torch.no_grad()
def evaluate_encoder(
    encoder: Encoder, loader: Iterable[dict], evaluators: Sequence[DatasetEvaluator], *, flip: bool = False
) -> list[dict]:
    """Evaluate every network, and perhaps their combined feature, in one pass over the images.

    Args:
        encoder: of K networks.
        loader: batches of query and gallery, this process's shard.
        evaluators: one for each network's own feature, and perhaps one more for the combined feature.
        flip: see `encode_batches`, also for what is raised: in every process.
    """

    def process() -> None:
        for batch, features in encode_batches(encoder, loader, flip=flip):
            for evaluator, feature in zip(evaluators, [*features, encoder.combine(features)]):
                evaluator.process(batch, feature)

    for evaluator in evaluators:
        evaluator.reset()
    in_all(process)
    return [evaluator.evaluate() or {} for evaluator in evaluators]


def evaluate_features(
    query: torch.Tensor, gallery: torch.Tensor, q_pids, g_pids, q_camids, g_camids, *, metric: str = "cosine"
) -> dict[str, float]:
    """Compute Rank-1, Rank-5, Rank-10, mAP, mINP and the host's "metric", (mAP + Rank-1) / 2, in percent.

    Args:
        query: (Q, d) float32 features on the CPU. gallery: (G, d). Neither is modified.
        q_pids, g_pids, q_camids, g_camids: see `evaluate_rank`, also for what is raised and the rule for
            ties.
        metric: see `distance_blocks`.
    """
    blocks = distance_blocks(query, gallery, metric)
    cmc, precisions, penalties = evaluate_blocks(blocks, q_pids, g_pids, q_camids, g_camids)
    mean_ap, mean_inp = float(np.mean(precisions)), float(np.mean(penalties))
    results = OrderedDict((f"Rank-{rank}", float(cmc[rank - 1]) * 100) for rank in (1, 5, 10))
    results.update(
        {"mAP": mean_ap * 100, "mINP": mean_inp * 100, "metric": (mean_ap + float(cmc[0])) / 2 * 100}
    )
    return results


def row_names(num_peers: int) -> list:
    """Name the rows of an evaluation: ``teacher0`` ... and, with more than one, ``ensemble``."""
    names = [f"teacher{k}" for k in range(num_peers)]
    return names + ["ensemble"] if num_peers > 1 else names


def evaluate_peers(cfg: CfgNode, model: SSKD) -> dict[str, dict[str, dict[str, float]]]:
    """Evaluate all teachers and the ensemble in one pass over the images of each test set.

    Returns:
        {data set: {row: {"mAP", "Rank-1", "Rank-5", "Rank-10", "mINP", "metric", "queries"}}},
        in percent.
    """
    encoder = Encoder(model, "ensemble", Precision(cfg))
    results = OrderedDict()
    for name in cfg.DATASETS.TESTS:
        loader, num_query = test_loader(cfg, name)
        rows = row_names(model.num_peers)
        evaluators = [BlockwiseEvaluator(cfg, num_query) for _ in rows]
        found = evaluate_encoder(encoder, loader, evaluators, flip=cfg.TEST.FLIP.ENABLED)
        results[name] = OrderedDict(zip(rows, found))
    return results


METRICS = ("mAP", "Rank-1", "Rank-5", "Rank-10", "mINP")


def results_table(
    rows: Iterable[tuple[Sequence[str], dict[str, float]]], headers: Sequence[str], tablefmt: str = "pipe"
) -> str:
    """Format (labels, metrics) rows as a table, metrics in percent; a missing metric prints as "-".

    ``headers`` names the label columns, ``tablefmt`` is one of tabulate's formats.
    """
    body = [[*labels, *(metrics.get(name) for name in METRICS)] for labels, metrics in rows]
    return tabulate(body, headers=[*headers, *METRICS], tablefmt=tablefmt, floatfmt=".1f", missingval="-")
