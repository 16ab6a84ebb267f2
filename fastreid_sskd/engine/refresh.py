"""The pseudo-label refresh before every epoch: cluster the target's features, relabel, start the epoch anew."""
import logging
import time
from collections.abc import Callable, Sequence

import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase

from ..clustering import check_usable, cluster_agreement, pseudo_labels
from ..data import Item, extraction_loader
from ..evaluation.features import extract_features
from ..modeling import SSKD, ensemble_feature

__all__ = ["PseudoLabelRefresh"]

logger = logging.getLogger("fastreid.sskd.refresh")


class PseudoLabelRefresh(HookBase):
    """Method, "at the start of each epoch": features, distance, eps, clusters, classifiers, labels, optimiser.

    Runs in ``before_epoch`` and has to be registered before every hook that looks at the epoch's data. eps is
    estimated at the first refresh and is part of the checkpoint; ``SSKD.CLUSTER.EPS``, when given, goes before it, so
    that a run that stopped for its clusters can be resumed with another one. Logs under ``refresh/``: clusters, noise share,
    eps, largest and median cluster, share of labels changed, seconds per stage; and, where the target carries
    identities, NMI, AMI, ARI and BCubed F under ``diagnostics/``, which training never sees.

    Args:
        cfg: the run's config.
        model: the peers.
        items: (path, identity, camera) of the target's images.
        on_labels: called with the new labels (N,) when the classifiers have been replaced.
    """

    def __init__(self, cfg: CfgNode, model: SSKD, items: Sequence[Item], on_labels: Callable):
        self.cfg = cfg
        self.model = model
        self.items = items
        self.on_labels = on_labels
        self.eps = 0.0
        self.labels = None
        self.history: list[dict] = []

    def state_dict(self) -> dict:
        return {"eps": self.eps, "labels": self.labels, "history": self.history}

    def load_state_dict(self, state: dict) -> None:
        self.eps, self.labels, self.history = state["eps"], state["labels"], state["history"]

    def before_epoch(self):
        start = time.perf_counter()
        features = ensemble_feature(extract_features(self.model, extraction_loader(self.cfg, self.items)))
        seconds = {"features": time.perf_counter() - start}

        result = pseudo_labels(features, previous=self._previous(), **self._clustering_options())
        check_usable(result)
        self.eps = float(result.eps)
        self.labels = torch.as_tensor(result.labels)
        seconds.update(result.seconds)

        self.model.reset_classifiers(torch.as_tensor(result.centroids))
        self.on_labels(result.labels)
        self._report(result, seconds)

    def _previous(self):
        return None if self.labels is None else self.labels.numpy()

    def _clustering_options(self) -> dict:
        cluster = self.cfg.SSKD.CLUSTER
        if cluster.EPS or self.eps:
            radius = {"eps": cluster.EPS or self.eps}
        elif cluster.PAIRS_PER_IMAGE:
            radius = {"pairs_per_image": cluster.PAIRS_PER_IMAGE}
        else:
            radius = {"rho": cluster.RHO}
        return dict(
            k1=cluster.K1, k2=cluster.K2, variant=cluster.VARIANT, knn=cluster.KNN, method=cluster.METHOD,
            min_samples=cluster.MIN_SAMPLES, device=self.model.device, **radius,
        )

    def _report(self, result, seconds: dict[str, float]) -> None:
        report = result.report
        scalars = {
            "clusters": report.num_clusters, "noise_share": report.noise_share, "eps": self.eps,
            "largest_cluster": report.largest, "median_cluster": report.median,
        }
        if report.changed_share is not None:
            scalars["changed_share"] = report.changed_share
        scalars.update({f"seconds_{stage}": value for stage, value in seconds.items()})
        identities = [item[1] for item in self.items]
        agreement = cluster_agreement(result.labels, identities) if len(set(identities)) > 1 else {}
        self.history.append({"epoch": self.trainer.epoch, **scalars, **agreement})

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
