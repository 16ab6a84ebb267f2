"""One command for the whole method: pre-train the peers on the source, report direct transfer, adapt to the target."""
import contextlib
import gc
import logging
import os
from collections.abc import Iterator

import torch
from fastreid.config import CfgNode
from torch import nn

from ..config_values import merge_overrides
from ..data.items import test_items
from ..data.seeding import derive_seed
from ..evaluation.table import results_table
from ..modeling import ema_decay, load_source_weights, peer_config
from ..processes import on_main
from ..refusals import checking, said_of
from .adaptation import AdaptationTrainer
from .amp import Precision
from .check_config import check_network, check_optimizer, check_settings
from .checkpoint import Checkpointer, damage, last_checkpoint
from .lock import output_folder
from .same_run import check_same_run, config_kept_on_refusal, plain_config
from .setup import (
    load_config,
    make_deterministic,
    seed_everything,
    starts_from_backbone,
    use_device,
    without_pretraining,
)
from .source import SourceTrainer
from .stop import listen
from .trainer import Trainer

__all__ = [
    "check_evaluation", "check_inputs", "check_run", "check_trained", "evaluate", "load_trained", "run", "source_config", "source_weights", "train",
    "trainer_class",
]

logger = logging.getLogger("fastreid.sskd.pipeline")

_TRAINERS = {"SSKD": AdaptationTrainer, "SSKDSource": SourceTrainer}

# Sections that a source model shares with the peers it becomes, so that the files of both stages cannot disagree.
_SHARED = ("MODEL.BACKBONE", "MODEL.HEADS", "MODEL.DEVICE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.SIZE_TRAIN",
           "INPUT.SIZE_TEST", "DATALOADER.NUM_WORKERS", "TEST.IMS_PER_BATCH", "SSKD.BN_CHUNK", "SSKD.PEER_ARCHITECTURE",
           "SSKD.LOG_PERIOD", "SSKD.CHECKPOINT_SECONDS", "SSKD.CHECKPOINT_ITERS", "SSKD.KEEP_CHECKPOINTS", "SSKD.AMP_DTYPE",
           "SSKD.CHANNELS_LAST", "SSKD.COMPILE", "SSKD.GATHER_LOSSES")


def trainer_class(cfg: CfgNode) -> type:
    """The trainer of ``MODEL.META_ARCHITECTURE``; plain fast-reid models get the repaired host's."""
    return _TRAINERS.get(cfg.MODEL.META_ARCHITECTURE, Trainer)


@checking()
def load_trained(cfg: CfgNode) -> nn.Module:
    """The model of a config with the weights of its checkpoint, ``MODEL.WEIGHTS``, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is the checkpoint of another model.
    """
    check_trained(cfg)
    model = trainer_class(cfg).build_model(without_pretraining(cfg))
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


@checking()
def check_trained(cfg: CfgNode) -> None:
    """Check that there is a file of a trained model; Raises FileNotFoundError if not."""
    if not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise FileNotFoundError(f"a trained model is needed: MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}, which is no file")


def evaluate(cfg: CfgNode) -> dict:
    """``--eval-only``: load ``MODEL.WEIGHTS`` and evaluate on ``DATASETS.TESTS``; the results are logged too.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_trained` and :func:`check_evaluation`.
    """
    check_trained(cfg)
    check_evaluation(cfg)
    cls = trainer_class(cfg)
    results = cls.test(cfg, load_trained(cfg))
    if cls is AdaptationTrainer:  # the host logs its own
        rows = [((test, row), metrics) for test in results for row, metrics in results[test].items()]
        logger.info("%s:\n%s", cfg.MODEL.WEIGHTS, results_table(rows, ("test set", "teacher")))
    return results


def run(cfg: CfgNode, resume: bool = False) -> dict:
    """Check what the config describes and train it; for ``SSKD`` both stages. Returns the last evaluation's results.

    Raises:
        FolderInUseError: if another run writes into ``OUTPUT_DIR``.
        OtherConfigError: if a checkpoint that would be gone on from, or a finished source model, is of another config.
        PseudoLabelError: if the pseudo-labels cannot be trained on.
        FloatingPointError: if a loss or the model is not finite.
        Stopped: a ``SystemExit``, if SIGTERM or SIGINT came; the run is saved.
        FileNotFoundError, ImportError, ValueError: as :func:`check_run`.
    """
    check_run(cfg, resume)
    return train(cfg, resume)


def train(cfg: CfgNode, resume: bool = False) -> dict:
    """:func:`run` of a config that :func:`check_run` has passed."""
    use_device(cfg.MODEL.DEVICE)
    if cfg.SSKD.DETERMINISTIC:
        make_deterministic()
    else:  # the host sets it for the command line alone
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    with output_folder(cfg.OUTPUT_DIR), config_kept_on_refusal(cfg.OUTPUT_DIR), listen(), _memory_given_back():
        if cfg.MODEL.META_ARCHITECTURE == "SSKD":
            return _run_both_stages(cfg, resume)
        if cfg.SEED >= 0:
            seed_everything(cfg.SEED)
        return _train(trainer_class(cfg), cfg, resume)


@contextlib.contextmanager
def _memory_given_back() -> Iterator[None]:
    """A trainer, its hooks and its loop refer to each other, and Python would free their networks some runs later."""
    try:
        yield
    finally:
        gc.collect()


def _run_both_stages(cfg: CfgNode, resume: bool) -> dict:
    path = on_main(lambda: last_checkpoint(cfg.OUTPUT_DIR)) if resume else ""
    weights = [] if path else _source_weights(cfg)

    seed_everything(cfg.SEED)  # the same adaptation whether or not the source models were trained just now
    with checking():
        trainer = AdaptationTrainer(cfg)
        if path:
            trainer.resume_from(path)
        else:
            trainer.load_weights()
            if weights:
                load_source_weights(trainer.model, weights)
    if not path:
        if cfg.TEST.EVAL_PERIOD:
            logger.info("direct transfer")
            trainer.evaluate(epoch=0)
        else:
            logger.info(
                "nothing is evaluated: %s", "no teacher is best, and SSKD.EVAL_WITH best is teacher 0 of the last epoch"
                if not trainer.record.label_free else f"the best epoch and teacher are chosen by {cfg.SSKD.SELECT_BY}"
            )  # fmt: skip
    results = trainer.train()
    if trainer.record.evaluations:
        logger.info("results:\n%s", trainer.record.table())
    if trainer.record.label_free and not trainer.record.selected["epoch"]:
        logger.warning("no epoch has ended with usable clusters, so %s has chosen none: there is no model_best", cfg.SSKD.SELECT_BY)
    elif trainer.record.label_free:
        logger.info(
            "model_best holds the state after %(epoch)d epochs, its best teacher is %(peer)d: chosen by %(by)s without labels",
            {**trainer.record.selected, "by": cfg.SSKD.SELECT_BY},
        )
    return results


@checking()
def check_run(cfg: CfgNode, resume: bool = False) -> None:
    """What would only be found out later: :func:`check_inputs`, of stage 1 too if it is to be trained, and where a run starts.

    Raises:
        FileNotFoundError: if weights are missing, or as :func:`check_inputs`.
        OtherConfigError: if a finished source model is of another config.
        ImportError, ValueError: as :func:`check_inputs`.
    """
    check_inputs(cfg)
    if resume and on_main(lambda: last_checkpoint(cfg.OUTPUT_DIR)):
        return
    if cfg.MODEL.WEIGHTS and not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise FileNotFoundError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} not found: name a file of weights, or none to start without")
    if cfg.MODEL.META_ARCHITECTURE == "SSKD":
        _check_sources(cfg)


@checking()
def check_inputs(cfg: CfgNode) -> None:
    """What can be found out of one config, plain or of a stage, before anything is trained: settings, data, network, optimiser.

    Raises:
        ValueError: if a setting is out of its range, a batch cannot hold P x K, a data set is empty, or nothing can be learned.
        FileNotFoundError: if images are not where they should be.
        ImportError: if a setting needs a package that is not installed.
    """
    use_device(cfg.MODEL.DEVICE)  # its abilities are asked for below
    check_settings(cfg)
    cls = trainer_class(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "SSKD":
        ema_decay(0, cfg.SSKD.EMA.MOMENTUM)
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError("TEST.PRECISE_BN is for plain fast-reid models, whose batches have no views: set it to False")
    Precision(cfg)
    num_classes, iters_per_epoch = cls.check_data(cfg)
    check_network(cfg, num_classes)
    cls.build_lr_scheduler(cfg, check_optimizer(cfg), iters_per_epoch)
    if cfg.TEST.EVAL_PERIOD:
        check_evaluation(cfg)


@checking()
def check_evaluation(cfg: CfgNode) -> None:
    """Check that there is something to evaluate on.

    Raises:
        ValueError: if no test set is named, one has no query or no gallery, or a setting of ``TEST`` is out of its range.
        FileNotFoundError: if images are not where they should be.
    """
    check_settings(cfg, ("MODEL.", "INPUT.", "DATALOADER.NUM_WORKERS", "TEST."))
    if not cfg.DATASETS.TESTS:
        raise ValueError("DATASETS.TESTS is empty: name a test set, or set TEST.EVAL_PERIOD to 0 and train without evaluation")
    for name in cfg.DATASETS.TESTS:
        test_items(name, cfg.SSKD.FOLDERS)


def _train(cls: type[Trainer], cfg: CfgNode, resume: bool) -> dict:
    with checking():
        trainer = cls(cfg)
        trainer.resume_or_load(resume)
    return trainer.train()


def source_config(cfg: CfgNode, k: int) -> CfgNode:
    """The stage 1 config of peer k: ``SSKD.SOURCE.CONFIG``, the peers' network, a seed and folder of its own."""
    if not cfg.SSKD.SOURCE.CONFIG:
        raise ValueError(
            "SSKD needs source models: give SSKD.SOURCE.WEIGHTS (or MODEL.WEIGHTS), or in SSKD.SOURCE.CONFIG the "
            "config that pre-trains them"
        )
    source = load_config(cfg.SSKD.SOURCE.CONFIG)
    if source.MODEL.META_ARCHITECTURE != "SSKDSource":
        raise ValueError(
            f"SSKD.SOURCE.CONFIG {cfg.SSKD.SOURCE.CONFIG!r} is of {source.MODEL.META_ARCHITECTURE}, "
            "and has to be of SSKDSource"
        )
    own = peer_config(cfg, k)
    for key in _SHARED:
        *path, leaf = key.split(".")
        mine, theirs = own, source
        for part in path:
            mine, theirs = mine[part], theirs[part]
        theirs[leaf] = mine[leaf].clone() if isinstance(mine[leaf], CfgNode) else mine[leaf]
    for name, folder in cfg.SSKD.FOLDERS.items():  # the source stage passes the target's images through batch norm
        already = source.SSKD.FOLDERS.get(name, {})
        if any(already.values()) and already != folder:
            raise ValueError(
                f"SSKD.FOLDERS.{name} is one folder in {cfg.SSKD.SOURCE.CONFIG} and another in the config of the target: "
                "give them different names"
            )
        source.SSKD.FOLDERS[name] = folder.clone()
    target = tuple(cfg.DATASETS.NAMES)
    if source.SSKD.SOURCE.BN_DATASETS and tuple(source.SSKD.SOURCE.BN_DATASETS) != target:
        logger.info("the source models' batch norm sees %s, the target of this run", ", ".join(target))
        source.SSKD.SOURCE.BN_DATASETS = target
    source.SEED = derive_seed(cfg.SEED, k) >> 1
    source.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "source", f"peer{k}")
    with said_of("SSKD.SOURCE.OPTS"):
        merge_overrides(source, cfg.SSKD.SOURCE.OPTS)
    if not source.DATASETS.TESTS:
        source.TEST.EVAL_PERIOD = 0
    source.freeze()
    return source


def source_weights(cfg: CfgNode) -> list[str]:
    """The files that the peers start from: those given, else pre-trained now; [] if ``MODEL.WEIGHTS`` is the start.

    Given are ``SSKD.SOURCE.WEIGHTS``, or the ``MODEL.WEIGHTS`` of a file in ``SSKD.PEERS``; peers without are pre-trained.

    Raises:
        FileNotFoundError, ImportError, ValueError: if a given one is not there, or one cannot be pre-trained.
    """
    _check_sources(cfg)
    return _source_weights(cfg)


def _source_weights(cfg: CfgNode) -> list[str]:
    if cfg.SSKD.SOURCE.WEIGHTS or cfg.MODEL.WEIGHTS:
        return list(cfg.SSKD.SOURCE.WEIGHTS)
    if starts_from_backbone(cfg):
        logger.warning(
            "no source: %d peers start from %s, and know nothing of people; their first clusters are what looks alike",
            cfg.SSKD.NUM_PEERS, "pre-trained backbones" if cfg.MODEL.BACKBONE.PRETRAIN else "random weights",
        )
        return []
    return pretrain_peers(cfg)


@checking()
def _check_sources(cfg: CfgNode) -> None:
    """That the files are there which peers start from, and that those without one can be pre-trained.

    Raises:
        FileNotFoundError: if a file is missing.
        OtherConfigError: if a finished source model is of another config.
        ValueError: if there is nothing to start from, or stage 1 cannot work.
    """
    missing = [path for path in cfg.SSKD.SOURCE.WEIGHTS if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f"SSKD.SOURCE.WEIGHTS: no file {', '.join(missing)}")
    if cfg.SSKD.SOURCE.WEIGHTS or cfg.MODEL.WEIGHTS or starts_from_backbone(cfg):
        return
    given = [peer_config(cfg, k).MODEL.WEIGHTS for k in range(cfg.SSKD.NUM_PEERS)]
    for k, path in enumerate(given):
        if path and not os.path.isfile(path):
            raise FileNotFoundError(f"peer {k} is to start from MODEL.WEIGHTS {path!r} (of {cfg.SSKD.PEERS[k]}), which is no file")
    if all(given):
        return
    sources = [source_config(cfg, k) for k, path in enumerate(given) if not path]
    check_domains(cfg, sources[0])
    left = [source for source in sources if not on_main(lambda source=source: _is_finished(source))]
    for source in left if cfg.SSKD.PEERS else left[:1]:  # without PEERS they are alike
        with said_of(f"stage 1, {cfg.SSKD.SOURCE.CONFIG}"):
            check_run(source, resume=True)


def pretrain_peers(cfg: CfgNode) -> list[str]:
    """Pre-train the K peers on the source, each with its own seed; finished ones in ``OUTPUT_DIR`` are reused.

    Returns:
        K paths of weights: the better of the evaluated epochs on the source's test set, else the last epoch; the
        ``MODEL.WEIGHTS`` of a peer's file where it has some.

    Raises:
        OtherConfigError: if one in ``OUTPUT_DIR`` was trained with another config.
    """
    return [peer_config(cfg, k).MODEL.WEIGHTS or _pretrain(cfg, k) for k in range(cfg.SSKD.NUM_PEERS)]


def _pretrain(cfg: CfgNode, k: int) -> str:
    source = source_config(cfg, k)
    best, final = (os.path.join(source.OUTPUT_DIR, f"model_{name}.pth") for name in ("best", "final"))
    with output_folder(source.OUTPUT_DIR), listen(), _memory_given_back():
        if on_main(lambda: _is_finished(source)):
            logger.info("peer %d: reusing the finished source model in %s", k, source.OUTPUT_DIR)
        else:
            logger.info("peer %d: pre-training on %s", k, ", ".join(source.DATASETS.NAMES))
            seed_everything(source.SEED)
            _train(SourceTrainer, source, resume=True)
    return best if source.TEST.EVAL_PERIOD and os.path.isfile(best) else final


def _is_finished(source: CfgNode) -> bool:
    """Whether a source model is trained; one of another config is refused, one of fewer epochs goes on."""
    final = os.path.join(source.OUTPUT_DIR, "model_final.pth")
    if not os.path.isfile(final) or damage(final):
        return False
    checkpoint = torch.load(final, map_location="cpu", weights_only=True)
    check_same_run(checkpoint, plain_config(source), f"cannot reuse the finished source model {final}", anew=True)
    return checkpoint["epoch"] + 1 >= source.SOLVER.MAX_EPOCH


def check_domains(cfg: CfgNode, source: CfgNode) -> None:
    """A target that is also the source would be adapted to its own labels.

    Raises:
        ValueError: if a data set is both.
    """
    both = sorted(set(source.DATASETS.NAMES) & set(cfg.DATASETS.NAMES))
    if both:
        raise ValueError(
            f"{', '.join(both)} is source (DATASETS.NAMES of {cfg.SSKD.SOURCE.CONFIG}) and target (DATASETS.NAMES): "
            "name different data sets"
        )
