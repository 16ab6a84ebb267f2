"""Hooks of fast-reid's training loop, in the order in which they run; they only act."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy.sparse
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils import comm
from torch import nn

from ..clustering import (
    ClusterOptions,
    PseudoLabelError,
    PseudoLabels,
    check_usable,
    cluster_agreement,
    jaccard_distance,
    labels_again,
    pseudo_labels,
    sparse_silhouette,
)
from ..data import CropCache, Item, Tracklets, extraction_loader
from ..evaluation.features import extract_features
from ..modeling import SSKD
from ..precision import Precision
from ..processes import all_rows, broadcast_buffers, in_all, on_main
from .checkpoint import Checkpointer
from .events import LABEL_FREE, Record, restore_storage, storage_state
from .refresh import reestimate_batch_norm, shared_candidates, soft_labels

logger = logging.getLogger("fastreid.sskd.hooks")


class PseudoLabelRefresh(HookBase):
    """Method, "at the start of each epoch": features, clusters, classifiers, labels, a fresh optimiser.

    Registered before every hook that looks at the epoch's data. Several processes share the extraction of
    the features and the search for neighbors (:func:`.shared_candidates`); the main one does the rest and
    tells the labels. An error in any of them is raised in all.

    eps is estimated at the first refresh and is part of the checkpoint; ``SSKD.CLUSTER.EPS``, when given,
    goes before it. Labels that have collapsed (see ``check_usable``) end the run, or, with
    ``SSKD.CLUSTER.ON_COLLAPSE: keep``, are replaced by the last good ones: the classifiers become the
    centroids of the new features under the old labels, eps stays, and ``refresh/kept`` is 1.

    Logs clusters, labels and times under ``refresh/``; and, where the target carries identities, agreement
    with them under ``diagnostics/``, which training never sees.

    Args:
        cfg: the run's config.
        model: the peers.
        items: (path, identity, camera) of the target's images, and their track where they have one: then
            tracklets are clustered, see ``pseudo_labels``.
        on_labels: called with the new labels (N,) when the classifiers have been replaced.
        cache: of the images, where the run has one.
    """

    def __init__(
        self, cfg: CfgNode, model: SSKD, items: Sequence[Item], on_labels: Callable,
        cache: CropCache | None = None,
    ):  # fmt: skip
        self.cfg, self.model, self.items, self.on_labels, self.cache = cfg, model, items, on_labels, cache
        self.tracklets = Tracklets.from_items(items)
        self.options = ClusterOptions.from_cfg(cfg)
        self.eps = 0.0
        self.labels = None
        self.history: list[dict] = []

    def state_dict(self) -> dict:
        state = {name: getattr(self, name) for name in ("eps", "labels", "history")}
        return {**state, "temperature": self.model.temperature}

    def load_state_dict(self, state: dict) -> None:
        self.eps, self.labels, self.history = state["eps"], state["labels"], state["history"]
        if not self.cfg.SSKD.SOFT_LABELS.TEMPERATURE:
            self.model.temperature = state["temperature"]

    def before_epoch(self):
        if self.model.label_statistics == "refresh":
            # in random order: that of the paths may be by people, few of them in a batch
            order = np.random.default_rng(max(self.cfg.SEED, 0)).permutation(len(self.items))
            on_main(lambda: reestimate_batch_norm(self.cfg, self.model, [self.items[i] for i in order]))
            broadcast_buffers(self.model)
        result, kept, seconds = self._labels_together()
        self.eps = result.eps or self.eps  # kept labels come without one
        self.labels = torch.as_tensor(result.labels)
        self.model.reset_classifiers(torch.as_tensor(result.centroids))
        sharpness = {}
        if not self.cfg.SSKD.SOFT_LABELS.TEMPERATURE:
            sharpness = on_main(
                lambda: soft_labels(self.cfg, self.model, self.items, result.labels, self.cache)
            )
            self.model.temperature = sharpness["temperature"]
        self.on_labels(result.labels)
        self._report(result, seconds, kept, sharpness)

    def _labels_together(self) -> tuple[PseudoLabels, bool, dict[str, float]]:
        """The labels of this epoch in every process, as of `_labels_of`, and seconds per stage."""
        start = time.perf_counter()
        loader = extraction_loader(self.cfg, self.items, shared=True, cache=self.cache)
        features = all_rows(
            in_all(lambda: self.model.combine(extract_features(self.model, loader, Precision(self.cfg))))
        )
        extracted = time.perf_counter()
        every = self.cfg.SSKD.CLUSTER.EPS_EVERY
        options = self._options(estimate_again=bool(every) and self.trainer.epoch % every == 0)
        candidates = shared_candidates(features, options, **self._search())
        searched = time.perf_counter() - extracted
        if not comm.is_main_process():
            features = None  # not held while the main rank uses its own
        result, kept = on_main(lambda: self._labels_of(features, candidates, options))
        seconds = {"features": extracted - start, **result.seconds}
        if "knn" in seconds:
            seconds["knn"] += searched
        return result, kept, seconds

    def _labels_of(self, features, candidates, options: ClusterOptions) -> tuple[PseudoLabels, bool]:
        """Pseudo-labels of features (N, d), and whether the last good ones replace collapsed ones."""
        previous = None if self.labels is None else self.labels.numpy()
        result = pseudo_labels(
            features, options=options, previous=previous, candidates=candidates, **self._search()
        )
        kept = False
        try:
            check_usable(result.report, self.options)
        except PseudoLabelError as error:
            if self.cfg.SSKD.CLUSTER.ON_COLLAPSE == "stop" or previous is None:
                raise
            logger.warning(
                "epoch %d: the pseudo-labels have collapsed (%s); going on with those of the last good "
                "refresh, as SSKD.CLUSTER.ON_COLLAPSE is keep", self.trainer.epoch, error,
            )  # fmt: skip
            result, kept = labels_again(features, previous, result), True
        return dataclasses.replace(result, centroids=torch.as_tensor(result.centroids).cpu()), kept

    def cluster(self, features) -> PseudoLabels:
        """Pseudo-labels of features (N, d) by the run's settings, eps and last labels; changes nothing."""
        return pseudo_labels(
            features, options=self._options(), previous=self.labels.numpy(), **self._search()
        )

    def distances(self, features) -> scipy.sparse.csr_matrix:
        """Jaccard distances (N, N) of features (N, d) by the run's settings, as of `jaccard_distance`."""
        return jaccard_distance(features, options=self.options, **self._images())

    def _options(self, estimate_again: bool = False) -> ClusterOptions:
        """The options, with the eps that was estimated before, unless it is to be estimated again."""
        return self.options.replace(eps=self.options.eps or (0.0 if estimate_again else self.eps))

    def _search(self) -> dict:
        """Where the search runs and what is clustered: images, or tracklets of them."""
        return {**self._images(), "tracklets": self.tracklets}

    def _images(self) -> dict:
        """Where the search runs, and the cameras whose statistics are taken out of the features."""
        cameras = [item[2] for item in self.items] if self.cfg.SSKD.CLUSTER.CAMERA_STATISTICS else None
        return {"device": self.model.device, "cameras": cameras}

    def _report(self, result, seconds: dict[str, float], kept: bool, sharpness: dict[str, float]) -> None:
        report = result.report
        scalars = {
            "clusters": report.num_clusters,
            "noise_share": report.noise_share,
            "eps": self.eps,
            "largest_cluster": report.largest,
            "median_cluster": report.median,
            "kept": float(kept),
            **sharpness,
        }
        if result.recall is not None:
            scalars["recall"] = result.recall
        if report.changed_share is not None:
            scalars["changed_share"] = report.changed_share
        if result.tracklets is not None:
            scalars.update(
                tracklets=result.tracklets.tracklets,
                tracklets_joined=result.tracklets.joined,
                tracklets_split=result.tracklets.split,
            )
        scalars.update({f"seconds_{stage}": value for stage, value in seconds.items()})
        known = [i for i, item in enumerate(self.items) if item[1] is not None]
        identities = [self.items[i][1] for i in known]
        agreement = cluster_agreement(result.labels[known], identities) if len(set(identities)) > 1 else {}
        sweep = {"sweep": [dataclasses.asdict(radius) for radius in result.sweep]} if result.sweep else {}
        self.history.append({"epoch": self.trainer.epoch, **scalars, **agreement, **sweep})

        storage = self.trainer.storage
        storage.put_scalars(smoothing_hint=False, **{f"refresh/{k}": float(v) for k, v in scalars.items()})
        storage.put_scalars(smoothing_hint=False, **{f"diagnostics/{k}": v for k, v in agreement.items()})
        agrees = "".join(f" {name} {value:.3f}" for name, value in agreement.items())
        agrees = agrees and f" (diagnostics, unseen by training:{agrees})"
        logger.info("epoch %d: %s, %.1f s%s", self.trainer.epoch, report, sum(seconds.values()), agrees)
        if result.tracklets is not None:
            text = "%d tracklets: %d joined with others, %d split off from one that overlaps in time"
            logger.info(text, *dataclasses.astuple(result.tracklets))
        if sharpness:
            found = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in sharpness.items())
            logger.info("soft labels: %s", found)


class FreezeLayers(HookBase):
    """Keeps layers without gradient and in evaluation mode, batch norm's statistics included; then not.

    Acts before every step, by the step's number alone: a resumed run, or one whose mode an evaluation has
    changed, continues as it should. The host counts from 0 after a resume, and unfreezes batch norm with the
    first evaluation.

    Args:
        networks: those that have the layers; each student and each teacher of the peers.
        layers: names of a network's direct children.
        iters: steps that the layers stay frozen for.
    """

    def __init__(self, networks: Iterable[nn.Module], layers: Sequence[str], iters: int):
        self.iters = iters
        self.modules: list[nn.Module] = []
        for network in networks:
            children = dict(network.named_children())
            for layer in layers:
                if layer not in children:
                    raise ValueError(
                        f"MODEL.FREEZE_LAYERS names {layer!r}, but the network has {', '.join(children)}"
                    )
                self.modules.append(children[layer])
        self._frozen: list[nn.Parameter] | None = None

    def before_step(self):
        if self.trainer.iter < self.iters:
            if self._frozen is None:
                self._frozen = [p for module in self.modules for p in module.parameters() if p.requires_grad]
                logger.info("%d layers are frozen for %d iterations", len(self.modules), self.iters)
            for parameter in self._frozen:
                parameter.requires_grad_(False)
                parameter.grad = None
            for module in self.modules:
                module.eval()
        elif self._frozen is not None:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            for module in self.modules:
                module.train()
            self._frozen = None
            logger.info("the frozen layers learn from now on")


class PeerEMA(HookBase):
    """Moves every mean teacher towards its student after each step; logs ``ema_decay``, the step's alpha.

    Several processes' teachers get the main one's batch-norm statistics where their labels depend on them.
    """

    def __init__(self, model: SSKD, momentum: float):
        self.model, self.momentum = model, momentum

    def after_step(self):
        decay = self.model.update_teachers(self.trainer.iter, self.momentum)
        if self.model.label_statistics != "batch":
            broadcast_buffers(self.model.teachers)
        self.trainer.storage.put_scalar("ema_decay", decay, smoothing_hint=False)


class LabelFreeSelection(HookBase):
    """After every epoch clusters the target once more, and scores that; the best so far is ``model_best``.

    The start is a candidate too, but for the stability of labels, which it has none of. Nothing is trained on
    what this finds.

    Logs under ``selection/``: the epochs done, clusters, noise share, the share of labels changed since this
    epoch's refresh, the mean silhouette on the sparse Jaccard distances (noise counts 0) of the combined
    feature and of each teacher's own under the same labels, and ``score``, the one that ``SSKD.SELECT_BY``
    names. The best teacher has the highest silhouette, at the epoch with the highest score; the earliest of
    equals. An epoch whose clusters have collapsed (see ``check_usable``) has no score: few clusters look
    calm. Costs a refresh an epoch, and a search for neighbors for each teacher. Registered after the refresh
    and before the checkpoints, whose metric is ``selection/score``.
    """

    def __init__(self, refresh: PseudoLabelRefresh, record: Record):
        self.refresh, self.record = refresh, record

    def before_epoch(self):
        if self.trainer.epoch == 0 and self.record.select_by != "stability":
            signals = self._offer(0)
            self._log(signals, 0)
            if "score" in signals:
                self.trainer.keep_start(signals["score"])

    def after_epoch(self):
        if self.trainer.storage.latest().get("selection/epoch", (0,))[0] == self.trainer.epoch + 1:
            return  # done before a signal ended the evaluation after it, from which the run resumes
        start = time.perf_counter()
        signals = self._offer(self.trainer.epoch + 1)
        signals["seconds"] = time.perf_counter() - start
        self._log(signals, self.trainer.epoch + 1)

    def _log(self, signals: dict, done: int):
        found = {f"selection/{name}": float(value) for name, value in {"epoch": done, **signals}.items()}
        self.trainer.storage.put_scalars(smoothing_hint=False, **found)

    def _offer(self, done: int) -> dict:
        """Offer the state after ``done`` epochs to the record; returns the signals that speak for it."""
        signals, own = on_main(lambda: self._signals(done))
        score = signals.get("score")
        if score is not None and self.record.select(done, own.index(max(own)), score):
            self.refresh.model.best_peer.fill_(self.record.selected["peer"])
        selected = self.record.selected
        best = (
            "none" if selected["score"] is None else "teacher {peer} after {epoch} epochs".format(**selected)
        )
        logger.info(
            "epoch %d: %d clusters, %.1f %% noise, %.1f %% of labels changed, silhouette %.3f (%s); %s %s; "
            "best so far, without labels: %s",
            done, signals["clusters"], 100 * signals["noise_share"], 100 * signals["changed_share"],
            signals["silhouette"], ", ".join(f"teacher {k} {v:.3f}" for k, v in enumerate(own)),
            self.record.select_by, "-" if score is None else f"{score:.4f}", best,
        )  # fmt: skip
        return signals

    def _signals(self, done: int) -> tuple[dict, list[float]]:
        """Signals of the teachers together, "score" only if selectable, and each one's silhouette."""
        refresh, model = self.refresh, self.refresh.model
        loader = extraction_loader(refresh.cfg, refresh.items, cache=refresh.cache)
        features = extract_features(model, loader, Precision(refresh.cfg))
        combined = model.combine(features)
        result = refresh.cluster(combined)
        signals = {
            "clusters": result.report.num_clusters,
            "noise_share": result.report.noise_share,
            "changed_share": result.report.changed_share,
            "silhouette": self._silhouette(combined, result.labels),
        }
        own = [self._silhouette(feature, result.labels) for feature in features]
        signals.update({f"silhouette_teacher{k}": value for k, value in enumerate(own)})
        try:
            check_usable(result.report, refresh.options)
            signals["score"] = float(LABEL_FREE[self.record.select_by](signals))
        except PseudoLabelError as error:
            text = "the state after %d epochs is not selected, its clusters have collapsed: %s"
            logger.warning(text, done, error)
        return signals, own

    def _silhouette(self, features, labels) -> float:
        return float(sparse_silhouette(self.refresh.distances(features), labels).mean())


class PeriodicEvaluation(HookBase):
    """Evaluates after every ``period`` [epochs, >= 0] and after the last; 0: never.

    The host's ``EvalHook`` divides by a period of 0, and evaluates also when training failed.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict]):
        self.period, self.evaluate = period, evaluate

    def after_epoch(self):
        done = self.trainer.epoch + 1
        if not self.period or (done % self.period and done < self.trainer.max_epoch):
            return
        results = flatten_results_dict(self.evaluate())
        self.trainer.storage.put_scalars(smoothing_hint=False, **{k: float(v) for k, v in results.items()})
        comm.synchronize()


class ScalarWriters(HookBase):
    """The host's ``PeriodicWriter``, whose scalars and files a resumed run continues.

    Writes every ``period`` [iterations] and at the end of an epoch, before the checkpoint; ``build`` makes
    the writers when training begins. The last values of each scalar are in the checkpoint, so that
    smoothed ones continue too; what was written after it is cut off metrics.json.
    """

    def __init__(self, build: Callable[[], list], period: int):
        self._build, self._period = build, period
        self._writers: list = []
        self._resumed: dict | None = None

    def state_dict(self) -> dict:
        state = {type(writer).__name__: writer.state_dict() for writer in self._stateful()}
        return {"storage": storage_state(self.trainer.storage), "writers": state} if self._writers else {}

    def load_state_dict(self, state: dict) -> None:
        self._resumed = state

    def _stateful(self) -> list:
        return [writer for writer in self._writers if hasattr(writer, "state_dict")]

    def before_train(self):
        self._writers = self._build() if comm.is_main_process() else []
        if self._resumed:
            restore_storage(self.trainer.storage, self._resumed["storage"])
        saved = (self._resumed or {}).get("writers", {})
        for writer in self._stateful():
            if type(writer).__name__ in saved:
                writer.load_state_dict(saved[type(writer).__name__])

    def _write(self):
        for writer in self._writers:
            writer.write()

    def after_step(self):
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1:
            self._write()

    def after_epoch(self):
        self._write()

    def after_train(self):
        for writer in self._writers:
            writer.close()
        self._writers = []


class Checkpoints(HookBase):
    """Saves after every ``period`` epochs and after the last, the best as ``model_best``, and inside epochs.

    The best metric is part of the checkpoint, so a resumed run does not overwrite a better model. Of the
    periodic files the last ``keep`` stay, and as many of those inside epochs (``step_0000123.pth``), until
    the run is done. Registered last: what a file holds is what a resumed run begins with.

    Args:
        checkpointer: writes the files.
        period: ``SOLVER.CHECKPOINT_PERIOD`` [epochs, >= 1]. keep: ``SSKD.KEEP_CHECKPOINTS`` [files, >= 1].
        metric_name: the scalar in the event storage that a larger value of is better.
        seconds, iters: ``SSKD.CHECKPOINT_SECONDS`` and ``_ITERS``, how often to save inside an epoch; 0: not
            so.
    """

    def __init__(
        self, checkpointer: Checkpointer, period: int, keep: int, metric_name: str = "metric",
        *, seconds: float = 0, iters: int = 0,
    ):  # fmt: skip
        self.checkpointer, self.period, self.keep = checkpointer, period, keep
        self.metric_name, self.seconds, self.iters = metric_name, seconds, iters
        self.best_metric = -1.0
        self._evaluated_at: int | None = None
        self._saved_at = time.monotonic()
        checkpointer.checkpointables["checkpoints"] = self

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric = state["best_metric"]

    def before_train(self):
        self._saved_at = time.monotonic()

    def due(self, iteration: int) -> bool:
        """Whether to save inside an epoch now that ``iteration`` steps are done in all."""
        by_iteration = self.iters and iteration % self.iters == 0
        return bool(by_iteration or (self.seconds and time.monotonic() - self._saved_at >= self.seconds))

    def save_start(self, value: float) -> None:
        """Write ``model_best`` with the state before any epoch, whose metric is ``value``."""
        self.best_metric = value
        self.checkpointer.save("model_best", last=False, epoch=-1)

    def save_inside(self, iteration: int, **position) -> None:
        """Save between two steps; ``position`` says where, for the run that resumes there."""
        self._save(f"step_{iteration:07d}", **position)
        self.checkpointer.remove_all_but(self.keep, "step")

    def save_epoch(self, epoch: int) -> None:
        """Save at the end of an epoch, if that has not been done."""
        if (epoch + 1) % self.period:
            self._save(f"model_{epoch:04d}", epoch=epoch)

    def finish(self, epoch: int) -> None:
        """Write ``model_final`` where a run was killed after its last epoch and before that."""
        if self.checkpointer.save_dir and not self.checkpointer.has("model_final"):
            self._save("model_final", epoch=epoch)

    def _save(self, name: str, **position) -> None:
        self.checkpointer.save(name, **position)
        self._saved_at = time.monotonic()

    def after_epoch(self):
        epoch, last = self.trainer.epoch, self.trainer.epoch + 1 >= self.trainer.max_epoch
        value, at = self.trainer.storage.latest().get(self.metric_name, (None, None))
        fresh = value is not None and at != self._evaluated_at
        self._evaluated_at = at
        if fresh and value > self.best_metric:
            self.best_metric = value
            self._save("model_best", epoch=epoch)
        if last:
            self._save("model_final", epoch=epoch)
            self.checkpointer.remove_all_but(0, "step")
        elif (epoch + 1) % self.period == 0:
            self._save(f"model_{epoch:04d}", epoch=epoch)
            self.checkpointer.remove_all_but(self.keep)
