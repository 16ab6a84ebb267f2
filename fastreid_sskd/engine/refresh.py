"""The pseudo-label refresh before every epoch: cluster the target's features, relabel, start the epoch anew."""
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm

from ..clustering import (
    ClusterOptions,
    PseudoLabelError,
    PseudoLabels,
    check_usable,
    cluster_agreement,
    jaccard_distance,
    labels_again,
    pseudo_labels,
)
from ..data import CropCache, Item, extraction_loader
from ..evaluation.features import extract_features
from ..modeling import SSKD
from ..processes import all_rows, broadcast_buffers, in_all, on_main
from .baselines import reestimate_batch_norm
from .shared_search import shared_candidates
from .soft_labels import soft_labels

__all__ = ["PseudoLabelRefresh"]

logger = logging.getLogger("fastreid.sskd.refresh")


class PseudoLabelRefresh(HookBase):
    """Method, "at the start of each epoch": features, distance, eps, clusters, classifiers, labels, optimiser.

    Several processes share the extraction of the features and the search for neighbours (:func:`.shared_candidates`); the
    main one does the rest and tells the labels. An error in any of them is raised in all.

    Runs in ``before_epoch`` and has to be registered before every hook that looks at the epoch's data. eps is
    estimated at the first refresh and is part of the checkpoint; ``SSKD.CLUSTER.EPS``, when given, goes before it, so
    that a run that stopped for its clusters can be resumed with another one.

    Labels that have collapsed (see ``check_usable``) end the run, or, with ``SSKD.CLUSTER.ON_COLLAPSE: keep``, are
    replaced by the last good ones: the classifiers become the centroids of the new features under the old labels, eps
    stays that of the last good refresh, and ``refresh/kept`` is 1.

    With ``SSKD.SOFT_LABELS.TEMPERATURE`` 0 the model's temperature is found anew, and with its ``BN: refresh`` the teachers'
    batch-norm statistics are estimated on the target before the features are extracted.

    Logs under ``refresh/``: clusters, noise share,
    eps, largest and median cluster, share of labels changed, seconds per stage; and, where the target carries
    identities, NMI, AMI, ARI and BCubed precision, recall and F under ``diagnostics/``, which training never sees.

    Args:
        cfg: the run's config.
        model: the peers.
        items: (path, identity, camera) of the target's images.
        on_labels: called with the new labels (N,) when the classifiers have been replaced.
        cache: of the images, where the run has one.
    """

    def __init__(self, cfg: CfgNode, model: SSKD, items: Sequence[Item], on_labels: Callable,
                 cache: CropCache | None = None):
        self.cfg = cfg
        self.model = model
        self.items = items
        self.on_labels = on_labels
        self.cache = cache
        self.options = ClusterOptions.from_cfg(cfg)
        self.eps = 0.0
        self.labels = None
        self.history: list[dict] = []

    def state_dict(self) -> dict:
        return {"eps": self.eps, "labels": self.labels, "history": self.history, "temperature": self.model.temperature}

    def load_state_dict(self, state: dict) -> None:
        self.eps, self.labels, self.history = state["eps"], state["labels"], state["history"]
        if not self.cfg.SSKD.SOFT_LABELS.TEMPERATURE:
            self.model.temperature = state["temperature"]

    def before_epoch(self):
        if self.model.label_statistics == "refresh":
            self._estimate_batch_norm()
        result, kept, seconds = self._labels_together()
        self.eps = result.eps or self.eps  # kept labels come without one
        self.labels = torch.as_tensor(result.labels)
        self.model.reset_classifiers(torch.as_tensor(result.centroids))
        sharpness = {}
        if not self.cfg.SSKD.SOFT_LABELS.TEMPERATURE:
            sharpness = on_main(lambda: soft_labels(self.cfg, self.model, self.items, result.labels, self.cache))
            self.model.temperature = sharpness["temperature"]
        self.on_labels(result.labels)
        self._report(result, seconds, kept, sharpness)

    def _estimate_batch_norm(self) -> None:
        """By the main process, on images in random order: their paths' may be that of the people, few of them in a batch."""
        order = np.random.default_rng(max(self.cfg.SEED, 0)).permutation(len(self.items))
        on_main(lambda: reestimate_batch_norm(self.cfg, self.model, [self.items[i] for i in order]))
        broadcast_buffers(self.model)

    def _labels_together(self) -> tuple[PseudoLabels, bool, dict[str, float]]:
        """The labels of this epoch in every process, as of `_labels_of`, and seconds per stage."""
        start = time.perf_counter()
        loader = extraction_loader(self.cfg, self.items, shared=True, cache=self.cache)
        features = all_rows(in_all(lambda: self.model.combine(extract_features(self.model, loader))))
        extracted = time.perf_counter()
        every = self.cfg.SSKD.CLUSTER.EPS_EVERY
        options = self._options(estimate_again=bool(every) and self.trainer.epoch % every == 0)
        candidates = shared_candidates(features, options, **self._search())
        searched = time.perf_counter() - extracted
        if not comm.is_main_process():
            features = None  # not held while the main process goes on with its own
        result, kept = on_main(lambda: self._labels_of(features, candidates, options))
        seconds = {"features": extracted - start, **result.seconds}
        if "knn" in seconds:
            seconds["knn"] += searched
        return result, kept, seconds

    def _labels_of(self, features, candidates, options: ClusterOptions) -> tuple[PseudoLabels, bool]:
        """Pseudo-labels of features (N, d), and whether they are the last good ones, as the new ones have collapsed."""
        result = pseudo_labels(
            features, options=options, previous=self._previous(), candidates=candidates, **self._search()
        )
        kept = self._collapsed(result)
        if kept:
            result = labels_again(features, self._previous(), result)
        return dataclasses.replace(result, centroids=torch.as_tensor(result.centroids).cpu()), kept

    def _collapsed(self, result) -> bool:
        """Whether the last good labels must stand in; raises PseudoLabelError where they may not or there are none."""
        try:
            check_usable(result.report, self.options)
        except PseudoLabelError as error:
            if self.cfg.SSKD.CLUSTER.ON_COLLAPSE == "stop" or self.labels is None:
                raise
            logger.warning(
                "epoch %d: the pseudo-labels have collapsed (%s); going on with those of the last good refresh, as "
                "SSKD.CLUSTER.ON_COLLAPSE is keep", self.trainer.epoch, error,
            )  # fmt: skip
            return True
        return False

    def cluster(self, features, previous) -> PseudoLabels:
        """Pseudo-labels of features (N, d) by the run's settings and the eps it has; changes nothing. ``previous``: (N,) or None."""
        return pseudo_labels(features, options=self._options(), previous=previous, **self._search())

    def distances(self, features) -> scipy.sparse.csr_matrix:
        """Jaccard distances (N, N) of features (N, d) by the run's settings, as of `jaccard_distance`."""
        return jaccard_distance(features, options=self.options, **self._search())

    def _previous(self):
        return None if self.labels is None else self.labels.numpy()

    def _options(self, estimate_again: bool = False) -> ClusterOptions:
        """The options of this refresh: with the eps that was estimated before, unless it is to be estimated again."""
        return self.options.replace(eps=self.options.eps or (0.0 if estimate_again else self.eps))

    def _search(self) -> dict:
        """Where the search runs, and the cameras whose statistics are taken out of the features."""
        cameras = [item[2] for item in self.items] if self.cfg.SSKD.CLUSTER.CAMERA_STATISTICS else None
        return {"device": self.model.device, "cameras": cameras}

    def _report(self, result, seconds: dict[str, float], kept: bool, sharpness: dict[str, float]) -> None:
        report = result.report
        scalars = {
            "clusters": report.num_clusters, "noise_share": report.noise_share, "eps": self.eps,
            "largest_cluster": report.largest, "median_cluster": report.median, "kept": float(kept),
            **sharpness,
        }
        if result.recall is not None:
            scalars["recall"] = result.recall
        if report.changed_share is not None:
            scalars["changed_share"] = report.changed_share
        scalars.update({f"seconds_{stage}": value for stage, value in seconds.items()})
        known = [i for i, item in enumerate(self.items) if item[1] is not None]
        identities = [self.items[i][1] for i in known]
        agreement = cluster_agreement(result.labels[known], identities) if len(set(identities)) > 1 else {}
        sweep = {"sweep": [dataclasses.asdict(radius) for radius in result.sweep]} if result.sweep else {}
        self.history.append({"epoch": self.trainer.epoch, **scalars, **agreement, **sweep})

        storage = self.trainer.storage
        storage.put_scalars(smoothing_hint=False, **{f"refresh/{k}": float(v) for k, v in scalars.items()})
        storage.put_scalars(smoothing_hint=False, **{f"diagnostics/{k}": v for k, v in agreement.items()})
        logger.info(
            "epoch %d: %d clusters of %d images, %.1f %% noise, eps %.4f, largest %d, median %g, changed %s, %.1f s%s",
            self.trainer.epoch, report.num_clusters, report.num_images, 100 * report.noise_share, self.eps,
            report.largest, report.median,
            "-" if report.changed_share is None else f"{100 * report.changed_share:.1f} %", sum(seconds.values()),
            "".join(f", {k} {v:.3f}" for k, v in agreement.items()) and
            " (diagnostics, unseen by training:" + "".join(f" {k} {v:.3f}" for k, v in agreement.items()) + ")",
        )
        if sharpness:
            logger.info("soft labels: " + ", ".join(f"{name.replace('_', ' ')} {v:.4f}" for name, v in sharpness.items()))
