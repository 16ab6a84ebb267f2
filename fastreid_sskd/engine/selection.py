"""Which epoch and which teacher a run is best at, where no labels may say so."""
import logging
import time

from fastreid.engine.train_loop import HookBase

from ..clustering import PseudoLabelError, check_usable, sparse_silhouette
from ..data import extraction_loader
from ..evaluation.features import extract_features
from ..processes import on_main
from .records import LABEL_FREE, Record
from .refresh import PseudoLabelRefresh

__all__ = ["LabelFreeSelection"]

logger = logging.getLogger("fastreid.sskd.selection")


class LabelFreeSelection(HookBase):
    """After every epoch clusters the target once more and says how good that looks; the best so far is ``model_best``.

    Logs under ``selection/``: clusters, noise share, the share of labels changed since this epoch's refresh, the mean
    silhouette on the sparse Jaccard distances (noise counts 0) of the combined feature and of each teacher's own under the
    same labels, and ``score``, the one that ``SSKD.SELECT_BY`` names. The teacher that is best is the one with the highest
    silhouette, at the epoch with the highest score; the earliest of equals. An epoch whose clusters have collapsed (see
    ``check_usable``) has no score and is not selected: few clusters look calm and free of noise. Costs a refresh an epoch, and a search for
    neighbours for each teacher. To be registered after the refresh and before the checkpoints, whose metric is
    ``selection/score``. Nothing is trained on what it finds.

    Args:
        refresh: the run's refresh, for its settings, its eps and this epoch's labels.
        record: says what to select by, and is told what is selected.
    """

    def __init__(self, refresh: PseudoLabelRefresh, record: Record):
        self.refresh = refresh
        self.record = record

    def after_epoch(self):
        storage = self.trainer.storage
        if storage.latest().get("selection/clusters", (0, None))[1] == storage.iter:
            return  # done before a signal ended the evaluation after it, from which the run goes on
        start = time.perf_counter()
        model = self.refresh.model
        signals, own = on_main(self._signals)
        done = self.trainer.epoch + 1
        score = signals.get("score")
        if score is not None and self.record.select(done, own.index(max(own)), score):
            model.best_peer.fill_(self.record.selected["peer"])
        signals["seconds"] = time.perf_counter() - start
        storage.put_scalars(
            smoothing_hint=False, **{f"selection/{name}": float(value) for name, value in signals.items()}
        )
        logger.info(
            "epoch %d: %d clusters, %.1f %% noise, %.1f %% of labels changed, silhouette %.3f (%s); %s %s; best so far, "
            "without labels: %s", done, signals["clusters"], 100 * signals["noise_share"],
            100 * signals["changed_share"], signals["silhouette"], ", ".join(f"teacher {k} {v:.3f}" for k, v in enumerate(own)),
            self.record.select_by, "-" if score is None else f"{score:.4f}",
            "teacher {peer} after {epoch} epochs".format(**self.record.selected) if self.record.selected["epoch"] else "none",
        )  # fmt: skip

    def _signals(self) -> tuple[dict, list[float]]:
        """What says how good the epoch's teachers are together, "score" only where they can be selected, and each silhouette."""
        refresh, model = self.refresh, self.refresh.model
        features = extract_features(model, extraction_loader(refresh.cfg, refresh.items, cache=refresh.cache))
        combined = model.combine(features)
        result = refresh.cluster(combined, previous=refresh.labels.numpy())
        signals = {
            "clusters": result.report.num_clusters,
            "noise_share": result.report.noise_share,
            "changed_share": result.report.changed_share,
            "silhouette": self._silhouette(combined, result.labels),
        }
        own = [self._silhouette(feature, result.labels) for feature in features]
        signals.update({f"silhouette_peer{k}": value for k, value in enumerate(own)})
        try:
            check_usable(result.report, refresh.options)
            signals["score"] = float(LABEL_FREE[self.record.select_by](signals))
        except PseudoLabelError as error:
            logger.warning(
                "the state after %d epochs is not selected, its clusters have collapsed: %s", self.trainer.epoch + 1, error
            )
        return signals, own

    def _silhouette(self, features, labels) -> float:
        return float(sparse_silhouette(self.refresh.distances(features), labels).mean())
