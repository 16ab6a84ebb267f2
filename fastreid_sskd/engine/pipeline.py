"""One command for the whole method: pre-train the peers on the source, report direct transfer, adapt to the target."""
import logging
import os

from fastreid.config import CfgNode
from fastreid.modeling import build_model
from torch import nn

from ..clustering import CLUSTERING_METHODS, KNN_BACKENDS, VARIANTS
from ..data.items import test_items, training_items
from ..data.samplers import check_batch
from ..data.seeding import derive_seed
from ..evaluation.table import results_table
from ..modeling import ema_decay, load_source_weights
from .adaptation import AdaptationTrainer
from .checkpoint import Checkpointer
from .setup import load_config, seed_everything, without_pretraining
from .source import SourceTrainer
from .trainer import Trainer

__all__ = ["evaluate", "load_trained", "run", "source_config", "source_weights", "trainer_class"]

logger = logging.getLogger("fastreid.sskd.pipeline")

_TRAINERS = {"SSKD": AdaptationTrainer, "SSKDSource": SourceTrainer}

# Sections that a source model shares with the peers it becomes, so that the files of both stages cannot disagree.
_SHARED = ("MODEL.BACKBONE", "MODEL.HEADS", "MODEL.DEVICE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.SIZE_TRAIN",
           "INPUT.SIZE_TEST", "DATALOADER.NUM_WORKERS", "TEST.IMS_PER_BATCH", "SSKD.BN_CHUNK", "SSKD.LOG_PERIOD")


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
    """Train what the config describes; for ``SSKD`` both stages. Returns the last evaluation's results."""
    if cfg.MODEL.META_ARCHITECTURE != "SSKD":
        return _train(trainer_class(cfg)(cfg), resume)

    check_inputs(cfg)
    resuming = resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    weights = [] if resuming else source_weights(cfg)

    seed_everything(cfg.SEED)  # the same adaptation whether or not the source models were trained just now
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume)
    if not resuming:
        if weights:
            load_source_weights(trainer.model, weights)
        if cfg.TEST.EVAL_PERIOD:
            logger.info("direct transfer")
            trainer.evaluate(epoch=0)
    results = trainer.train()
    if trainer.record.evaluations:
        logger.info("results:\n%s", trainer.record.table())
    return results


def check_inputs(cfg: CfgNode) -> None:
    """What would only be found out after the source models have been trained for hours: settings, model, target.

    Raises:
        ValueError: if a batch cannot hold P x K, a setting is not one of those known, or a data set is empty.
        FileNotFoundError: if images are not where they should be.
    """
    check_batch(cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE)
    ema_decay(0, cfg.SSKD.EMA.MOMENTUM)
    for key, known in (("METHOD", CLUSTERING_METHODS), ("VARIANT", VARIANTS), ("KNN", ("auto", *KNN_BACKENDS))):
        if cfg.SSKD.CLUSTER[key] not in known:
            raise ValueError(f"SSKD.CLUSTER.{key} must be one of {', '.join(known)}; got {cfg.SSKD.CLUSTER[key]!r}")
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError("TEST.PRECISE_BN is for plain fast-reid models, whose batches have no views: set it to False")
    build_model(without_pretraining(cfg))  # and its losses
    training_items(cfg.DATASETS.NAMES)
    if cfg.TEST.EVAL_PERIOD:
        if not cfg.DATASETS.TESTS:
            raise ValueError("DATASETS.TESTS is empty: name a test set, or set TEST.EVAL_PERIOD to 0")
        for name in cfg.DATASETS.TESTS:
            test_items(name)


def _train(trainer: Trainer, resume: bool) -> dict:
    trainer.resume_or_load(resume)
    return trainer.train()


def source_config(cfg: CfgNode, k: int) -> CfgNode:
    """The stage 1 config of peer k: ``SSKD.SOURCE.CONFIG``, the peers' network, a seed and folder of its own."""
    source = load_config(cfg.SSKD.SOURCE.CONFIG)
    for key in _SHARED:
        *path, leaf = key.split(".")
        mine, theirs = cfg, source
        for part in path:
            mine, theirs = mine[part], theirs[part]
        theirs[leaf] = mine[leaf].clone() if isinstance(mine[leaf], CfgNode) else mine[leaf]
    source.SEED = derive_seed(cfg.SEED, k) >> 1
    source.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "source", f"peer{k}")
    source.merge_from_list(list(cfg.SSKD.SOURCE.OPTS))
    source.freeze()
    return source


def source_weights(cfg: CfgNode) -> list[str]:
    """The files that the peers start from: those given, else pre-trained now; [] if ``MODEL.WEIGHTS`` is the start."""
    if cfg.SSKD.SOURCE.WEIGHTS or cfg.MODEL.WEIGHTS:
        return list(cfg.SSKD.SOURCE.WEIGHTS)
    check_domains(cfg)
    return pretrain_peers(cfg)


def pretrain_peers(cfg: CfgNode) -> list[str]:
    """Pre-train the K peers on the source, each with its own seed; finished ones in ``OUTPUT_DIR`` are reused.

    Returns:
        K paths of weights: the better of the evaluated epochs on the source's test set, else the last epoch.
    """
    if not cfg.SSKD.SOURCE.CONFIG:
        raise ValueError(
            "SSKD needs source models: give SSKD.SOURCE.WEIGHTS (or MODEL.WEIGHTS), or in SSKD.SOURCE.CONFIG the "
            "config that pre-trains them"
        )
    paths = []
    for k in range(cfg.SSKD.NUM_PEERS):
        source = source_config(cfg, k)
        if source.MODEL.META_ARCHITECTURE != "SSKDSource":
            raise ValueError(
                f"SSKD.SOURCE.CONFIG {cfg.SSKD.SOURCE.CONFIG!r} is of {source.MODEL.META_ARCHITECTURE}, "
                "and has to be of SSKDSource"
            )
        best, final = (os.path.join(source.OUTPUT_DIR, f"model_{name}.pth") for name in ("best", "final"))
        if os.path.isfile(final):
            logger.info("peer %d: reusing the finished source model in %s", k, source.OUTPUT_DIR)
        else:
            logger.info("peer %d: pre-training on %s", k, ", ".join(source.DATASETS.NAMES))
            seed_everything(source.SEED)
            _train(SourceTrainer(source), resume=True)
        paths.append(best if os.path.isfile(best) else final)
    return paths


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
