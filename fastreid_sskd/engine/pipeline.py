"""One command for the whole method: pre-train the peers on the source, report direct transfer, adapt to the target."""
import contextlib
import gc
import logging
import os
from collections.abc import Iterator

import torch
from fastreid.config import CfgNode
from fastreid.modeling import build_model
from torch import nn

from ..data.items import test_items, training_items
from ..data.samplers import check_batch
from ..data.seeding import derive_seed
from ..data.transforms import build_view_transforms
from ..evaluation.table import results_table
from ..modeling import ema_decay, peer_config
from ..processes import on_main
from .adaptation import AdaptationTrainer
from .amp import Precision
from .check_config import check_clustering, check_settings
from .checkpoint import Checkpointer, damage, last_checkpoint
from .hooks import Checkpoints
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
from .shares import check_shares
from .source import SourceTrainer
from .stop import listen
from .trainer import Trainer

__all__ = ["evaluate", "load_trained", "run", "source_config", "source_weights", "trainer_class"]

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


def load_trained(cfg: CfgNode) -> nn.Module:
    """The model of a config with the weights of its checkpoint, ``MODEL.WEIGHTS``, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is the checkpoint of another model.
    """
    if not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise FileNotFoundError(f"a trained model is needed: MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}, which is no file")
    model = trainer_class(cfg).build_model(without_pretraining(cfg))
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()


def evaluate(cfg: CfgNode) -> dict:
    """``--eval-only``: load ``MODEL.WEIGHTS`` and evaluate on ``DATASETS.TESTS``; the results are logged too."""
    cls = trainer_class(cfg)
    results = cls.test(cfg, load_trained(cfg))
    if cls is AdaptationTrainer:  # the host logs its own
        rows = [((test, row), metrics) for test in results for row, metrics in results[test].items()]
        logger.info("%s:\n%s", cfg.MODEL.WEIGHTS, results_table(rows, ("test set", "teacher")))
    return results


def run(cfg: CfgNode, resume: bool = False) -> dict:
    """Train what the config describes; for ``SSKD`` both stages. Returns the last evaluation's results.

    Raises:
        FolderInUseError: if another run writes into ``OUTPUT_DIR``.
        OtherConfigError: if a checkpoint that would be gone on from, or a finished source model, is of another config.
        PseudoLabelError: if the pseudo-labels cannot be trained on.
        FloatingPointError: if a loss or the model is not finite.
        Stopped: a ``SystemExit``, if SIGTERM or SIGINT came; the run is saved.
    """
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
        return _train(trainer_class(cfg)(cfg), resume)


@contextlib.contextmanager
def _memory_given_back() -> Iterator[None]:
    """A trainer, its hooks and its loop refer to each other, and Python would free their networks some runs later."""
    try:
        yield
    finally:
        gc.collect()


def _run_both_stages(cfg: CfgNode, resume: bool) -> dict:
    check_inputs(cfg)
    path = on_main(lambda: last_checkpoint(cfg.OUTPUT_DIR)) if resume else ""
    weights = [] if path else source_weights(cfg)

    seed_everything(cfg.SEED)  # the same adaptation whether or not the source models were trained just now
    trainer = AdaptationTrainer(cfg)
    if path:
        trainer.resume_from(path)
    else:
        trainer.load_weights()
        if weights:
            trainer.start_from(weights)
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


def check_inputs(cfg: CfgNode) -> None:
    """What would only be found out after the source models have been trained for hours: settings, model, target.

    Raises:
        ValueError: if a batch cannot hold P x K, a setting is out of its range, or a data set is empty.
        FileNotFoundError: if images are not where they should be.
        ImportError: if a setting needs a package that is not installed.
    """
    use_device(cfg.MODEL.DEVICE)  # its abilities are asked for below
    check_batch(cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE)
    check_shares(cfg)
    ema_decay(0, cfg.SSKD.EMA.MOMENTUM)
    check_settings(cfg)
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError("TEST.PRECISE_BN is for plain fast-reid models, whose batches have no views: set it to False")
    Precision(cfg)
    model = build_model(without_pretraining(cfg))  # and its losses
    AdaptationTrainer.build_lr_scheduler(cfg, AdaptationTrainer.build_optimizer(cfg, model), cfg.SSKD.ITERS_PER_EPOCH)
    Checkpoints(
        Checkpointer(nn.Module()), cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SSKD.KEEP_CHECKPOINTS,
        seconds=cfg.SSKD.CHECKPOINT_SECONDS, iters=cfg.SSKD.CHECKPOINT_ITERS,
    )  # fmt: skip
    items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
    check_clustering(cfg, len(items))
    build_view_transforms(cfg)
    if cfg.TEST.EVAL_PERIOD:
        if not cfg.DATASETS.TESTS:
            raise ValueError("DATASETS.TESTS is empty: name a test set, or set TEST.EVAL_PERIOD to 0")
        for name in cfg.DATASETS.TESTS:
            test_items(name, cfg.SSKD.FOLDERS)


def _train(trainer: Trainer, resume: bool) -> dict:
    trainer.resume_or_load(resume)
    return trainer.train()


def source_config(cfg: CfgNode, k: int) -> CfgNode:
    """The stage 1 config of peer k: ``SSKD.SOURCE.CONFIG``, the peers' network, a seed and folder of its own."""
    source = load_config(cfg.SSKD.SOURCE.CONFIG)
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
    source.merge_from_list(list(cfg.SSKD.SOURCE.OPTS))
    source.freeze()
    return source


def source_weights(cfg: CfgNode) -> list[str]:
    """The files that the peers start from: those given, else pre-trained now; [] if ``MODEL.WEIGHTS`` is the start.

    Given are ``SSKD.SOURCE.WEIGHTS``, or the ``MODEL.WEIGHTS`` of a file in ``SSKD.PEERS``; peers without are pre-trained.

    Raises:
        FileNotFoundError: if a given one is not there.
    """
    if cfg.SSKD.SOURCE.WEIGHTS or cfg.MODEL.WEIGHTS:
        missing = [path for path in cfg.SSKD.SOURCE.WEIGHTS if not os.path.isfile(path)]
        if missing:
            raise FileNotFoundError(f"SSKD.SOURCE.WEIGHTS: no file {', '.join(missing)}")
        return list(cfg.SSKD.SOURCE.WEIGHTS)
    if starts_from_backbone(cfg):
        logger.warning(
            "no source: %d peers start from %s, and know nothing of people; their first clusters are what looks alike",
            cfg.SSKD.NUM_PEERS, "pre-trained backbones" if cfg.MODEL.BACKBONE.PRETRAIN else "random weights",
        )
        return []
    given = [peer_config(cfg, k).MODEL.WEIGHTS for k in range(cfg.SSKD.NUM_PEERS)]
    for k, path in enumerate(given):  # before hours go into the others
        if path and not os.path.isfile(path):
            raise FileNotFoundError(f"peer {k} is to start from MODEL.WEIGHTS {path!r} (of {cfg.SSKD.PEERS[k]}), which is no file")
    if not all(given):
        check_domains(cfg)
    return pretrain_peers(cfg)


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
    if not cfg.SSKD.SOURCE.CONFIG:
        raise ValueError(
            "SSKD needs source models: give SSKD.SOURCE.WEIGHTS (or MODEL.WEIGHTS), or in SSKD.SOURCE.CONFIG the "
            "config that pre-trains them"
        )
    source = source_config(cfg, k)
    if source.MODEL.META_ARCHITECTURE != "SSKDSource":
        raise ValueError(
            f"SSKD.SOURCE.CONFIG {cfg.SSKD.SOURCE.CONFIG!r} is of {source.MODEL.META_ARCHITECTURE}, "
            "and has to be of SSKDSource"
        )
    best, final = (os.path.join(source.OUTPUT_DIR, f"model_{name}.pth") for name in ("best", "final"))
    with output_folder(source.OUTPUT_DIR), listen(), _memory_given_back():
        if on_main(lambda: _is_finished(source, final)):
            logger.info("peer %d: reusing the finished source model in %s", k, source.OUTPUT_DIR)
        else:
            logger.info("peer %d: pre-training on %s", k, ", ".join(source.DATASETS.NAMES))
            seed_everything(source.SEED)
            _train(SourceTrainer(source), resume=True)
    return best if source.TEST.EVAL_PERIOD and os.path.isfile(best) else final


def _is_finished(source: CfgNode, final: str) -> bool:
    """Whether a source model is trained; one of another config is refused, one of fewer epochs goes on."""
    if not os.path.isfile(final) or damage(final):
        return False
    checkpoint = torch.load(final, map_location="cpu", weights_only=True)
    check_same_run(checkpoint, plain_config(source), f"cannot reuse the finished source model {final}", anew=True)
    return checkpoint["epoch"] + 1 >= source.SOLVER.MAX_EPOCH


def check_domains(cfg: CfgNode) -> None:
    """A target that is also the source would be adapted to its own labels.

    Raises:
        ValueError: if a data set is both.
    """
    if not cfg.SSKD.SOURCE.CONFIG:
        return
    source = load_config(cfg.SSKD.SOURCE.CONFIG, cfg.SSKD.SOURCE.OPTS).DATASETS.NAMES
    both = sorted(set(source) & set(cfg.DATASETS.NAMES))
    if both:
        raise ValueError(
            f"{', '.join(both)} is source (DATASETS.NAMES of {cfg.SSKD.SOURCE.CONFIG}) and target (DATASETS.NAMES): "
            "name different data sets"
        )
