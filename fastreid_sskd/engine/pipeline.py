"""The whole method: pre-train the peers on the source, report direct transfer, adapt to the target."""

import contextlib
import gc
import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from PIL import Image
from torch import nn

from ..config import KEYS, value_of
from ..config_values import merge_overrides
from ..data.datasets import image_paths
from ..data.items import test_items, training_items
from ..data.loaders import extraction_loader, image_size
from ..data.samplers import derive_seed
from ..evaluation.evaluator import evaluate_peers, results_table
from ..evaluation.features import Encoder, encode_images
from ..modeling import build_peer, ema_decay, load_source_weights, peer_config
from ..modeling.weights import load_model, load_network, read_state_dict
from ..precision import Precision
from ..processes import listen, on_main
from ..refusals import checking, said_of
from .check_config import check_images, check_network, check_optimizer, check_settings
from .checkpoint import check_same_images, check_same_run, damage, last_checkpoint, plain_config
from .defaults import (
    load_config,
    make_deterministic,
    seed_everything,
    start_run,
    starts_from_backbone,
    use_device,
    without_pretraining,
)
from .files import output_folder
from .refresh import reestimate_batch_norm
from .stages import AdaptationTrainer, SourceTrainer
from .trainer import Trainer

logger = logging.getLogger("fastreid.sskd.pipeline")

_TRAINERS = {"SSKD": AdaptationTrainer, "SSKDSource": SourceTrainer}


def trainer_class(cfg: CfgNode) -> type:
    """The trainer of ``MODEL.META_ARCHITECTURE``; plain fast-reid models get the repaired host's."""
    return _TRAINERS.get(cfg.MODEL.META_ARCHITECTURE, Trainer)


@checking()
def load_trained(cfg: CfgNode) -> nn.Module:
    """The model of a config with the weights of its checkpoint, ``MODEL.WEIGHTS``, in evaluation mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or is of another model, or the model cannot take images of the
            config's size.
    """
    check_trained(cfg)
    model = trainer_class(cfg).build_model(without_pretraining(cfg))
    load_model(model, cfg.MODEL.WEIGHTS, evaluation=True)
    Precision(cfg).lay_out(model)
    check_images(model.eval(), cfg, [image_size(cfg)])
    return model


@checking()
def check_trained(cfg: CfgNode) -> None:
    """Check that there is a file of a trained model, a device with its precision, and how images are read.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: as :class:`..precision.Precision`, or if a setting is out of its range.
    """
    Precision(cfg)
    check_settings(cfg, ("INPUT.", "DATALOADER.NUM_WORKERS", "TEST."))
    if not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise FileNotFoundError(
            f"a trained model is needed: MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}, which is no file"
        )


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


def evaluate_start(cfg: CfgNode, weights: Sequence[str], *, batch_norm: bool = False) -> dict[str, dict]:
    """Evaluate the peers of an SSKD config as they start from their source models: direct transfer.

    Args:
        weights: files, see :func:`..modeling.load_source_weights`.
        batch_norm: with the batch-norm statistics of the target's training images.

    Returns:
        {data set: {row: metrics}}, as :func:`..evaluation.peers.evaluate_peers`.
    """
    seed_everything(cfg.SEED)
    model = AdaptationTrainer.build_model(cfg)
    load_source_weights(model, weights)
    if batch_norm:
        reestimate_batch_norm(cfg, model, training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS))
    return evaluate_peers(cfg, model)


def image_features(
    cfg: CfgNode,
    model: nn.Module,
    paths: Sequence[str | Image.Image],
    answer: str = "",
    flip: bool | None = None,
) -> np.ndarray:
    """Compute features (N, d) of N >= 1 images, float32 of unit length, as the model's evaluation does.

    Args:
        paths: of the images, or the images themselves, decoded in RGB.
        answer: another teacher than that of ``SSKD.EVAL_WITH``.
        flip: other than ``TEST.FLIP.ENABLED``.
    """
    loader = extraction_loader(cfg, [(path, 0, 0) for path in paths])
    flip = cfg.TEST.FLIP.ENABLED if flip is None else flip
    encoder = Encoder(model, answer, Precision(cfg))
    return F.normalize(encode_images(encoder, loader, flip=flip), dim=1).numpy()


def predict(cfg: CfgNode, folder: str) -> tuple[list[str], np.ndarray]:
    """The paths of N images and their features (N, d), float32 of unit length.

    Args:
        cfg: describes the model; ``MODEL.WEIGHTS`` its checkpoint, ``SSKD.EVAL_WITH`` which teacher of an
            SSKD model.
        folder: searched with its sub-folders.
    """
    paths = image_paths(folder)
    return paths, image_features(cfg, load_trained(cfg), paths)


def run(cfg: CfgNode, resume: bool = False) -> dict:
    """Check what the config describes and train it; for ``SSKD`` both stages.

    Returns the last evaluation's results.

    A run from scratch moves the files of an earlier one in ``OUTPUT_DIR`` aside, see
    :func:`.defaults.start_run`.

    Raises:
        FolderInUseError: if another run writes into ``OUTPUT_DIR``.
        OtherConfigError: if the checkpoint to resume from, or a finished source model, is of
            another config or other images.
        PseudoLabelError: if the pseudo-labels cannot be trained on.
        FloatingPointError: if a loss or the model is not finite.
        Stopped: a ``SystemExit``, if SIGTERM or SIGINT came; the run is saved.
        FileNotFoundError, ImportError, ValueError: as :func:`check_run`.
    """
    check_run(cfg, resume)
    return train(cfg, resume)


def train(cfg: CfgNode, resume: bool = False) -> dict:
    """:func:`run` of a config that :func:`check_run` has passed."""
    _choose_kernels(cfg)
    with output_folder(cfg.OUTPUT_DIR), listen(), _memory_given_back():
        if cfg.MODEL.META_ARCHITECTURE == "SSKD":
            return _run_both_stages(cfg, resume)
        if cfg.SEED >= 0:
            seed_everything(cfg.SEED)
        return _train(trainer_class(cfg), cfg, resume)


def _choose_kernels(cfg: CfgNode) -> None:
    use_device(cfg.MODEL.DEVICE)
    if cfg.SSKD.DETERMINISTIC:
        make_deterministic()
    else:  # the host sets it for the command line alone
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


@contextlib.contextmanager
def _memory_given_back() -> Iterator[None]:
    """Free a finished trainer at once: it and its hooks refer to each other."""
    try:
        yield
    finally:
        gc.collect()


def _run_both_stages(cfg: CfgNode, resume: bool) -> dict:
    path = on_main(lambda: last_checkpoint(cfg.OUTPUT_DIR)) if resume else ""
    weights: list[str] = []
    if not path:
        if pretrains(cfg):  # pre-training takes hours, in which the folder is this run's
            start_run(cfg, from_scratch=True)
        weights = source_weights(cfg)

    seed_everything(cfg.SEED)  # the same adaptation whether or not the source models were trained just now
    with checking():
        trainer = AdaptationTrainer(cfg)
        if path:
            trainer.resume_from(path)
        else:
            trainer.load_weights()
            if weights:
                trainer.start_from(weights)
    if not path:
        trainer.start()
        if cfg.TEST.EVAL_PERIOD:
            logger.info("direct transfer")
            trainer.evaluate(epoch=0)
            if not trainer.record.label_free:
                trainer.keep_start(trainer.record.metric)
        else:
            logger.info(
                "nothing is evaluated: %s",
                "no teacher is best, and SSKD.EVAL_WITH best is teacher 0 of the last epoch"
                if not trainer.record.label_free
                else f"the best epoch and teacher are chosen by {cfg.SSKD.SELECT_BY}",
            )
    results = trainer.train()
    if trainer.record.evaluations:
        logger.info("results:\n%s", trainer.record.table())
    if trainer.record.no_better_than_start:
        logger.warning(
            "no epoch is better than the start, by %s: model_best is the start. Look at the refreshes first "
            "(noise, clusters): SSKD.CLUSTER.EPS_RULE and CAMERA_STATISTICS; then at SSKD.SOFT_LABELS.BN "
            "running, SSKD.EMA.WINDOW and SOLVER.BASE_LR",
            trainer.record.select_by,
        )  # fmt: skip
    if trainer.record.label_free and trainer.record.selected["score"] is None:
        logger.warning(
            "no epoch has ended with usable clusters, so %s has chosen none: there is no model_best",
            cfg.SSKD.SELECT_BY,
        )
    elif trainer.record.label_free:
        logger.info(
            "model_best holds the state after %(epoch)d epochs, its best teacher is %(peer)d: chosen by "
            "%(by)s without labels",
            {**trainer.record.selected, "by": cfg.SSKD.SELECT_BY},
        )
    return results


@checking()
def check_run(cfg: CfgNode, resume: bool = False) -> None:
    """Find what would only be found later: :func:`check_inputs`, of stage 1 too, and where a run starts."""
    check_inputs(cfg)
    if resume and on_main(lambda: last_checkpoint(cfg.OUTPUT_DIR)):
        return
    if cfg.MODEL.WEIGHTS and not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise FileNotFoundError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} not found: name a file of weights, or none to start without"
        )
    if cfg.MODEL.META_ARCHITECTURE == "SSKD":
        check_source(cfg)
    elif cfg.MODEL.WEIGHTS:
        _check_readable("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)


def _check_readable(key: str, path: str) -> None:
    """Refuse a file that holds no weights, of whatever network; its tensors stay on the disk."""
    with said_of(key):
        read_state_dict(path, mmap=True)


@checking()
def check_inputs(cfg: CfgNode) -> None:
    """Check settings, data, network and optimiser of one config, plain or of a stage, before any training."""
    use_device(cfg.MODEL.DEVICE)  # its abilities are asked for below
    check_settings(cfg)
    cls = trainer_class(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "SSKD":
        ema_decay(0, cfg.SSKD.EMA.MOMENTUM)
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError(
                "TEST.PRECISE_BN is for plain fast-reid models, whose batches have no views: set it to False"
            )
    Precision(cfg)
    num_classes, iters_per_epoch = cls.check_data(cfg)
    check_network(cfg, num_classes)
    cls.build_lr_scheduler(cfg, check_optimizer(cfg), iters_per_epoch)
    if cfg.TEST.EVAL_PERIOD:
        check_evaluation(cfg)


@checking()
def check_evaluation(cfg: CfgNode) -> None:
    """Check that there is something to evaluate on."""
    check_settings(cfg, ("MODEL.", "INPUT.", "DATALOADER.NUM_WORKERS", "TEST."))
    if not cfg.DATASETS.TESTS:
        raise ValueError(
            "DATASETS.TESTS is empty: name a test set, or set TEST.EVAL_PERIOD to 0 and train without "
            "evaluation"
        )
    for name in cfg.DATASETS.TESTS:
        test_items(name, cfg.SSKD.FOLDERS)


def _train(cls: type[Trainer], cfg: CfgNode, resume: bool) -> dict:
    with checking():
        trainer = cls(cfg)
        trainer.resume_or_load(resume)
    return trainer.train()


def source_config(cfg: CfgNode, k: int) -> CfgNode:
    """The stage 1 config of peer k: ``SSKD.SOURCE.CONFIG``, its network, a seed and folder of its own."""
    if not cfg.SSKD.SOURCE.CONFIG:
        raise ValueError(
            "SSKD needs source models: give SSKD.SOURCE.WEIGHTS (or MODEL.WEIGHTS), or in "
            "SSKD.SOURCE.CONFIG the config that pre-trains them"
        )
    source = load_config(cfg.SSKD.SOURCE.CONFIG)
    if source.MODEL.META_ARCHITECTURE != "SSKDSource":
        raise ValueError(
            f"SSKD.SOURCE.CONFIG {cfg.SSKD.SOURCE.CONFIG!r} is of {source.MODEL.META_ARCHITECTURE}, "
            "and has to be of SSKDSource"
        )
    own = peer_config(cfg, k)
    for key in KEYS:
        if key.shared:
            section, _, name = key.name.rpartition(".")
            value = value_of(own, key.name)
            value_of(source, section)[name] = value.clone() if isinstance(value, CfgNode) else value
    # the source stage passes the target's images through batch norm
    for name, folder in cfg.SSKD.FOLDERS.items():
        already = source.SSKD.FOLDERS.get(name, {})
        if any(already.values()) and already != folder:
            raise ValueError(
                f"SSKD.FOLDERS.{name} is one folder in {cfg.SSKD.SOURCE.CONFIG} and another in the config "
                "of the target: give them different names"
            )
        source.SSKD.FOLDERS[name] = folder.clone()
    target = tuple(cfg.DATASETS.NAMES)
    if source.SSKD.SOURCE.BN_DATASETS and tuple(source.SSKD.SOURCE.BN_DATASETS) != target:
        logger.info("the source models' batch norm sees %s, the target of this run", ", ".join(target))
        source.SSKD.SOURCE.BN_DATASETS = target
    source.SEED = cfg.SEED
    source.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "source", f"peer{k}")
    with said_of("SSKD.SOURCE.OPTS"):
        own_folder = source.OUTPUT_DIR
        merge_overrides(source, cfg.SSKD.SOURCE.OPTS)
        if source.OUTPUT_DIR != own_folder:
            raise ValueError(
                "OUTPUT_DIR would be one folder for all peers, and each has its own below the run's: leave "
                "it out"
            )
    # a seed in OPTS is the peers' common one too: with the same seed they would be the same model
    source.SEED = derive_seed(source.SEED if source.SEED >= 0 else cfg.SEED, k) >> 1
    if not source.DATASETS.TESTS:
        source.TEST.EVAL_PERIOD = 0
    source.freeze()
    return source


@checking()
def check_source(cfg: CfgNode) -> None:
    """Check what the peers are to start from, before anything is trained; needs no images of the target.

    Raises:
        OtherConfigError: if a source model in ``OUTPUT_DIR`` was trained with another config.
        FileNotFoundError, ValueError: if something else would stop or mislead stage 1.
    """
    given = _given_weights(cfg)
    for key, path in given:
        if path and not os.path.isfile(path):
            raise FileNotFoundError(f"{key}: no file {path}")
        if path:
            _check_readable(key, path)
    if not pretrains(cfg):
        return
    left = []
    for k, (_, path) in enumerate(given):
        if path:
            load_network(build_peer(without_pretraining(peer_config(cfg, k))), read_state_dict(path), path, k)
            continue
        source = source_config(cfg, k)
        both = sorted(set(source.DATASETS.NAMES) & set(cfg.DATASETS.NAMES))
        if both:  # the target would be adapted to its own labels
            raise ValueError(
                f"{', '.join(both)} is source (DATASETS.NAMES of {cfg.SSKD.SOURCE.CONFIG}) and target "
                "(DATASETS.NAMES): name different data sets"
            )
        if not on_main(lambda source=source: _is_finished(source)):
            left.append(source)
    for source in left if cfg.SSKD.PEERS else left[:1]:  # without PEERS they are alike
        with said_of(f"stage 1, {cfg.SSKD.SOURCE.CONFIG}"):
            check_run(source, resume=True)


def pretrains(cfg: CfgNode) -> bool:
    """Whether an SSKD config has source models to pre-train, as not all are given."""
    return not starts_from_backbone(cfg) and not all(path for _, path in _given_weights(cfg))


def _given_weights(cfg: CfgNode) -> list[tuple[str, str]]:
    """What says so, and the files that are given to start from; "" for a peer without."""
    whole = [("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)] if cfg.MODEL.WEIGHTS else []
    if cfg.SSKD.SOURCE.WEIGHTS or whole:
        return [*whole, *(("SSKD.SOURCE.WEIGHTS", path) for path in cfg.SSKD.SOURCE.WEIGHTS)]
    peers = cfg.SSKD.PEERS or [""] * cfg.SSKD.NUM_PEERS
    return [
        (f"MODEL.WEIGHTS of peer {k} ({file})", peer_config(cfg, k).MODEL.WEIGHTS)
        for k, file in enumerate(peers)
    ]


def source_weights(cfg: CfgNode) -> list[str]:
    """Return the files that the peers start from, pre-trained now where none are given.

    Given are ``SSKD.SOURCE.WEIGHTS``, or the ``MODEL.WEIGHTS`` of a file in ``SSKD.PEERS``. Peers without are
    pre-trained, each with its own seed; finished ones in ``OUTPUT_DIR`` are reused. Of a pre-trained peer it
    is the better of the evaluated epochs on the source's test set, else the last. With ``SSKD.SOURCE.SKIP``
    they stay as they are built (""), and all of them none, or a start from ``MODEL.WEIGHTS``, is [].
    :func:`check_source` comes first.
    """
    if cfg.SSKD.SOURCE.WEIGHTS or cfg.MODEL.WEIGHTS:
        return list(cfg.SSKD.SOURCE.WEIGHTS)
    given = [path for _, path in _given_weights(cfg)]
    if starts_from_backbone(cfg):
        if not all(given):
            logger.warning(
                "no source: %d peers start from %s, and know nothing of people; their first clusters are "
                "what looks alike",
                given.count(""),
                "pre-trained backbones" if cfg.MODEL.BACKBONE.PRETRAIN else "random weights",
            )
        return given if any(given) else []
    _choose_kernels(cfg)
    return [path or _pretrain(cfg, k) for k, path in enumerate(given)]


def _pretrain(cfg: CfgNode, k: int) -> str:
    source = source_config(cfg, k)
    with output_folder(source.OUTPUT_DIR), listen(), _memory_given_back():
        if on_main(lambda: _is_finished(source)):
            logger.info("peer %d: reusing the finished source model in %s", k, source.OUTPUT_DIR)
        else:
            logger.info("peer %d: pre-training on %s", k, ", ".join(source.DATASETS.NAMES))
            seed_everything(source.SEED)
            _train(SourceTrainer, source, resume=True)
    best = os.path.join(source.OUTPUT_DIR, "model_best.pth")
    return best if source.TEST.EVAL_PERIOD and os.path.isfile(best) else _final(source)


def _final(source: CfgNode) -> str:
    return os.path.join(source.OUTPUT_DIR, "model_final.pth")


def _is_finished(source: CfgNode) -> bool:
    """Whether a source model is trained; one of another config is refused, one of fewer epochs is resumed."""
    final = _final(source)
    whole = os.path.isfile(final) and not damage(final)
    path = final if whole else last_checkpoint(source.OUTPUT_DIR)
    if not path:
        return False
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    what = f"cannot reuse the {'finished ' * whole}source model {path}"
    check_same_run(checkpoint, plain_config(source), what, from_scratch=whole)
    with contextlib.suppress(FileNotFoundError):  # the source need not be there any more
        labelled = [item[0] for item in training_items(source.DATASETS.NAMES, source.SSKD.FOLDERS)]
        check_same_images(checkpoint, {"DATASETS.NAMES": labelled}, what, source.SSKD.MAY_DIFFER)
    return whole and checkpoint["epoch"] + 1 >= source.SOLVER.MAX_EPOCH
