"""Patches of the host's evaluation: no compiler, no process exit, ranking and re-ranking that work."""

import logging
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .patch import ModuleProxy, Patch, put, swap, target

logger = logging.getLogger("fastreid.sskd.compat")

UNIT_NORM_TOLERANCE = 1e-4  # float32 rounding of F.normalize, generously
FAISS_CPU = 3  # the host's search_option for faiss on the CPU


def _together(host_inference: Callable[..., dict]) -> Callable[..., dict]:
    """Return the host's evaluation on a data set, whose processes fail together or succeed together."""

    def inference_on_dataset(model: Any, data_loader: Any, evaluator: Any, flip_test: bool = False) -> dict:
        """As the host's; what is raised over the batches in one process is raised in all."""
        from ..processes import in_all

        batches = types.SimpleNamespace(reset=evaluator.reset, process=evaluator.process, evaluate=dict)
        in_all(lambda: host_inference(model, data_loader, batches, flip_test))
        return evaluator.evaluate() or {}

    return inference_on_dataset


def evaluate_rank(
    distmat: np.ndarray,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple:
    """Rank with `fastreid_sskd.evaluation.ranking.evaluate_rank`; the cuhk03 protocol stays the host's."""
    if use_metric_cuhk03:
        host_rank = target("fastreid.evaluation.rank", "eval_cuhk03")
        return host_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank)
    from ..evaluation.ranking import evaluate_rank as evaluate

    return evaluate(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=max_rank)


def _jaccard(host_jaccard: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Return the host's jaccard distance on any device, and never with more neighbours than images."""

    @torch.no_grad()
    def compute_jaccard_distance(
        features: torch.Tensor, k1: int = 20, k2: int = 6, search_option: int = 0, fp16: bool = False
    ) -> np.ndarray:
        """Dense k-reciprocal Jaccard distance, N x N in 0..1, with the host's arguments and memory.

        ``search_option``, which chose between faiss indices, is not used.
        """
        features = features.detach().float().cpu()
        count = len(features)
        if not torch.allclose(features.norm(dim=1), torch.ones(count), atol=UNIT_NORM_TOLERANCE):
            # TEST.METRIC "euclidean" compares raw features, the package's distance is one of directions
            cut = {"k1": min(k1, count), "k2": min(k2, count)}
            return host_jaccard(features, **cut, search_option=FAISS_CPU, fp16=fp16)
        from ..clustering.jaccard import jaccard_distance

        if k1 >= count:
            text = "TEST.RERANK.K1 = %d reaches all %d images: re-ranking says little, lower it"
            logger.warning(text, k1, count)
        with warnings.catch_warnings():  # said above with the key that applies here
            warnings.filterwarnings("ignore", message=".*neighbour lists are cut")
            sparse = jaccard_distance(features, min(k1, count), k2, variant="faiss")
        dense = np.ones(sparse.shape, dtype=np.float16 if fp16 else np.float32)
        dense[np.repeat(np.arange(count), np.diff(sparse.indptr)), sparse.indices] = sparse.data
        return dense

    return compute_jaccard_distance


@torch.no_grad()
def compute_euclidean_distance(features: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    """Squared Euclidean distance, m x n, of m x d and n x d features; the host calls it "euclidean"."""
    squared = features.pow(2).sum(dim=1, keepdim=True) + others.pow(2).sum(dim=1).unsqueeze(0)
    return torch.addmm(squared, features, others.t(), beta=1, alpha=-2).cpu().numpy()


PATCHES = (
    Patch(
        "no-compiler",
        "evaluation/reid_evaluation.py:35, evaluation/rank_cylib/__init__.py:8",
        "the first evaluation runs make and ends the process with sys.exit(1) where Cython is missing",
        lambda: put(
            "fastreid.evaluation.reid_evaluation", "ReidEvaluator._compile_dependencies", lambda self: None
        ),
    ),
    Patch(
        "inference",
        "evaluation/evaluator.py:87",
        "of several processes, one that fails in the features leaves the others waiting for it in evaluate()",
        lambda: swap("fastreid.evaluation.evaluator", "inference_on_dataset", _together),
    ),
    Patch(
        "evaluate-rank",
        "evaluation/rank.py:156",
        "ragged arrays fail from numpy 1.24 on when the gallery minus junk is below 50; slow without Cython",
        lambda: swap("fastreid.evaluation.rank", "evaluate_rank", lambda old: evaluate_rank),
    ),
    Patch(
        "numpy-bool",
        "evaluation/rank.py:69",
        "np.bool does not exist from numpy 1.24 to 1.26 (cuhk03 protocol)",
        lambda: put("fastreid.evaluation.rank", "np", ModuleProxy(np, bool=bool)),
        needed=lambda: "bool" not in vars(np),  # hasattr would warn in numpy 1.24-1.26
    ),
    Patch(
        "rerank",
        "utils/compute_dist.py:53, 65-97",
        "TEST.RERANK needs faiss-gpu and gives wrong distances silently when k1 > N",
        lambda: swap("fastreid.utils.compute_dist", "compute_jaccard_distance", _jaccard),
    ),
    Patch(
        "euclidean",
        "utils/compute_dist.py:183",
        "addmm_(beta, alpha, ...) is deprecated and warns at every evaluation",
        lambda: swap(
            "fastreid.utils.compute_dist",
            "compute_euclidean_distance",
            lambda old: compute_euclidean_distance,
        ),
    ),
)
