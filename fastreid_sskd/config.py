"""Every config key of SSKD: its default, meaning and range, and what resume and stage 1 do with it.

``add_sskd_config`` adds the keys to a fast-reid config in the manner of detectron2's projects. The checks
before a run, the rule of what a checkpoint may be resumed with, stage 1's config and ``docs/config.md`` are
made from the same table.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from yacs.config import CfgNode

from .refusals import nearest

#: in place of a default: the key is fast-reid's, and so is its default
HOST = object()
#: the losses of fast-reid's own architectures
HOST_LOSSES = ("CrossEntropyLoss", "TripletLoss", "CircleLoss", "Cosface")


@dataclass(frozen=True)
class Rule:
    """A range: whether a value is allowed (never NaN), and what is, as the end of "KEY must be ..."."""

    allows: Callable[[Any], bool]
    text: str


@dataclass(frozen=True)
class OneOf:
    """A choice of names; a value that is a list consists of them."""

    names: Collection[str]


@dataclass(frozen=True)
class Key:
    """One key of the config.

    Attributes:
        name: with its sections. Of fast-reid's keys a whole section may be named.
        default: the method's value, or ``HOST``.
        meaning: with the method's symbol and the unit.
        rule: what is allowed; None: anything of the default's type, or what the part that reads it checks.
        resume: whether a run may be resumed with another value. "same": no, unless ``SSKD.MAY_DIFFER`` names
            the key. "start": it has acted before the first step, so that it is warned of. "continue": yes.
            "any": yes, and nothing depends on it, so that a finished run of another value stands for this one
            too.
        shared: the source models of stage 1 get this run's value.
        read_by: who reads it, and only then is it checked: "" every run, "stage 2", "plain" (fast-reid's own
            architectures), "radius" and "neighbors" (the clustering methods that need them), "radii" (an
            EPS_RULE that clusters at each).
    """

    name: str
    default: Any
    meaning: str = ""
    rule: Rule | OneOf | None = None
    resume: str = "same"
    shared: bool = False
    read_by: str = ""


def _at_least(least: float, what: str, zero: str = "") -> Rule:
    return Rule(
        lambda value: least <= value < float("inf"),
        f"{what} >= {least:g}" + (f", 0 for {zero}" if zero else ""),
    )


_AUTOMATIC = Rule(lambda value: value >= 0, "a number >= 1, or 0 to choose it automatically")
_SHARE = Rule(lambda value: 0 <= value <= 1, "a share in [0, 1]")
_SIZE = Rule(lambda value: len(value) == 2 and min(value) >= 1, "[height, width] in pixels, each >= 1")
_SEED = Rule(
    lambda value: 0 <= value < 2**32,
    "a number >= 0 and below 2**32; fastreid_sskd.engine.resolve, and so the command line, draws one for -1",
)  # fmt: skip

KEYS: tuple[Key, ...] = (
    # ---- the run
    Key("SEED", -1,
        "seed of every random number generator of the run; -1: a new one each time. fast-reid has none",
        _SEED),
    Key("SSKD.NUM_PEERS", 3,
        "K, number of peers, each a student and its mean teacher [networks]",
        _at_least(1, "a number of networks")),
    Key("SSKD.PEERS", [],
        "peers that differ: one fast-reid yml per peer, of which backbone, head, pixel values and "
        "MODEL.WEIGHTS (its start, unless SSKD.SOURCE.WEIGHTS is given) are used; sets NUM_PEERS. Relative "
        "to the file that names them [paths]"),
    Key("SSKD.PEER_ARCHITECTURE", "Baseline",
        "the peers' path from images to features and logits: a registered meta-architecture with a "
        "backbone and one head, whose forward is Baseline's or ends like it; a file of PEERS names its own "
        "with MODEL.META_ARCHITECTURE",
        shared=True),
    Key("SSKD.COMBINE", "auto",
        "what of the peers is combined for clusters and ensemble: \"features\" (the mean, the method's; "
        'one common space), "distances" (their mean; every peer keeps its own space and centroids), "auto" '
        "(distances with PEERS)"),
    Key("SSKD.ITERS_PER_EPOCH", 400,
        "length of an epoch, whatever the number of images [iterations]",
        _at_least(1, "a number of iterations")),
    Key("SSKD.BN_CHUNK", 0,
        "images that share batch-norm statistics, as contiguous chunks of the batch; 0: the whole batch. "
        "Four GPUs under DataParallel gave the authors 16 at batch 64 (running statistics: the first "
        "chunk's) [images]",
        shared=True),
    Key("SSKD.EVAL_WITH", "best",
        'what the model returns in evaluation: "best" (the teacher that was best on DATASETS.TESTS[0]; the '
        "first before any evaluation), \"ensemble\" (normalised mean of the teachers' normalised features) "
        "or a peer's number, from 0",
        resume="any"),
    Key("SSKD.SELECT_BY", "mAP",
        'what selects model_best and its best teacher: "mAP" on DATASETS.TESTS[0], or without labels, at '
        'the cost of a refresh per epoch: highest "silhouette" of the clusters (noise counts 0), least '
        '"noise", highest "stability" of the labels',
        OneOf(("mAP", "silhouette", "noise", "stability")), read_by="stage 2"),
    Key("SSKD.GATHER_LOSSES", True,
        "several ranks: compute the losses on the whole batch, of features and logits gathered with their "
        "gradient, as one process does; False: each rank on its own share (this changes multi-similarity "
        "and the nuclear norm)",
        shared=True),
    Key("SSKD.LOG_PERIOD", 50,
        "how often losses are written to the log, metrics.json and TensorBoard [iterations]",
        _at_least(1, "a number of iterations"), resume="any", shared=True),
    Key("SSKD.KEEP_CHECKPOINTS", 2,
        "periodic checkpoints kept beside model_best and model_final, and as many inside epochs [files]",
        _at_least(1, "a number of files"), resume="any", shared=True),
    Key("SSKD.CHECKPOINT_SECONDS", 1800,
        "save inside an epoch too, this long after the last checkpoint; 0: not by time [s]",
        _at_least(0, "a number of seconds", "not by time"), resume="any", shared=True),
    Key("SSKD.CHECKPOINT_ITERS", 0,
        "save whenever the number of steps is a multiple of this; 0: not by steps [iterations]",
        _at_least(0, "a number of iterations", "not by steps"), resume="any", shared=True),
    Key("SSKD.MAY_DIFFER", [],
        "keys changed on purpose, with those below them, that a resumed run accepts [names]",
        resume="any"),
    Key("SSKD.DETERMINISTIC", False,
        "the same result bit for bit on the same device: deterministic kernels only, which are slower; an "
        "error where torch has none"),
    Key("SSKD.PRECISION", "float32",
        'of the networks\' passes in both stages: "float32", "bfloat16", "float16" (CUDA), or "auto": '
        "bfloat16 and channels last where the device has units for bfloat16, else float32. "
        "SOLVER.AMP.ENABLED with float32 is auto, and float16 on CUDA devices without these units. Weights, "
        "losses, features and distances stay float32",
        OneOf(("auto", "float32", "bfloat16", "float16")), shared=True),
    Key("SSKD.CHANNELS_LAST", False,
        "feature maps in memory as (B, H, W, C), faster on some devices; results differ by rounding",
        shared=True),
    Key("SSKD.COMPILE", False,
        "backbones through torch.compile; what it cannot compile runs as it is, and torch logs why",
        shared=True),
    # ---- mean teachers
    Key("SSKD.EMA.MOMENTUM", 0.999,
        "upper bound of alpha in  teacher <- alpha teacher + (1 - alpha) student,  alpha = min(1 - "
        "1/(t+1), MOMENTUM)"),
    Key("SSKD.EMA.WINDOW", 0.0,
        "the same bound as a share of the run: 1 - 1 / (WINDOW * steps of the run) replaces MOMENTUM; 0: "
        "MOMENTUM holds. The method's 0.999 is an eighth of its 8,000 steps",
        Rule(lambda value: 0 <= value <= 1, "a share of the run's steps in (0, 1], or 0 for MOMENTUM")),
    # ---- soft labels: what a teacher's logits become for the peer that learns from them
    Key("SSKD.SOFT_LABELS.BN", "batch",
        "statistics of the teachers' batch norm when they label: of the \"batch\", the method's; "
        "\"running\", each teacher's own, which still follow its train-mode passes (K forward passes "
        "more); \"student\", averages of the student's along with the weights; \"refresh\", estimated on "
        "the target's images at every refresh (the last two without train-mode passes)",
        OneOf(("batch", "running", "student", "refresh"))),
    Key("SSKD.SOFT_LABELS.TEMPERATURE", 1.0,
        "T, which divides the teachers' logits, not the students'; the method has 1; 0: found at every "
        "refresh",
        Rule(lambda value: 0 <= value < float("inf"), "a number > 0, or 0 to find it at every refresh")),
    Key("SSKD.SOFT_LABELS.CONFIDENCE", 0.8,
        "with TEMPERATURE 0: mean of the teachers' highest probability, on a sample of the labelled "
        "images in evaluation mode (even where BN is batch), that T is set to give",
        Rule(lambda value: 0 < value < 1, "a probability in (0, 1)")),
    # ---- losses: one section per registered loss, its WEIGHT (0: not computed) and its parameters.
    # A loss of another project is registered in SSKD_LOSS_REGISTRY, with a section of its name.
    Key("SSKD.LOSSES.LabelSmoothCE.WEIGHT", 0.5,
        "L_id, cross entropy with smoothed pseudo-labels; weight 1 - w"),
    Key("SSKD.LOSSES.LabelSmoothCE.EPSILON", 0.1,
        "epsilon, share of the label that is spread evenly over all classes, in [0, 1]"),
    Key("SSKD.LOSSES.SoftCE.WEIGHT", 0.5, "L_soft, cross entropy with the next peer's teacher; weight w"),
    Key("SSKD.LOSSES.MultiSimilarity.WEIGHT", 3.0,
        "L_ms, multi-similarity on the features before the BN-neck; weight w_ms"),
    Key("SSKD.LOSSES.MultiSimilarity.ALPHA", 2.0, "slope of its positive term"),
    Key("SSKD.LOSSES.MultiSimilarity.BETA", 40.0, "slope of its negative term"),
    Key("SSKD.LOSSES.MultiSimilarity.BASE", 0.5, "similarity at the middle of both terms"),
    Key("SSKD.LOSSES.MultiSimilarity.MARGIN", 0.1, "margin of its pair mining, as a similarity"),
    Key("SSKD.LOSSES.NuclearNorm.WEIGHT", 1.5,
        "L_nn, negative batch nuclear norm of the predictions; weight w_nn"),
    Key("SSKD.LOSSES.ClusterContrast.WEIGHT", 0.0,
        "Cluster-Contrast's InfoNCE against one vector per cluster (arXiv 2103.11568), kept in the "
        "classifier, so it excludes losses of the logits (LabelSmoothCE, SoftCE, NuclearNorm); off in the "
        "method"),
    Key("SSKD.LOSSES.ClusterContrast.TEMPERATURE", 0.05, "tau > 0, which divides the cosines"),
    Key("SSKD.LOSSES.ClusterContrast.MOMENTUM", 0.1,
        "m, weight of the old vector when an image updates it, in [0, 1]"),
    Key("SSKD.LOSSES.SoftTriplet.WEIGHT", 0.0,
        "MMT's soft triplet with hard labels; off in the method as released"),
    Key("SSKD.LOSSES.SoftTriplet.MARGIN", 0.0, "m, the softened label of its margin form, in [0, 1]"),
    Key("SSKD.LOSSES.PeerSoftTriplet.WEIGHT", 0.0,
        "MMT's soft triplet with the next peer's teacher; off in the method as released"),
    # ---- folders of crops: data sets by the names that DATASETS.NAMES and TESTS use; one section each
    Key("SSKD.FOLDERS.CropFolder.TRAIN", "",
        "images to train on [folder below FASTREID_DATASETS, or absolute]"),
    Key("SSKD.FOLDERS.CropFolder.QUERY", "", "queries to evaluate with; with GALLERY or not at all [folder]"),
    Key("SSKD.FOLDERS.CropFolder.GALLERY", "", "gallery to evaluate with [folder]"),
    Key("SSKD.FOLDERS.CropFolder.CAMERA", "",
        'camera in a path below its folder: first group of a regular expression; "": none. "^([^/]+)/" is '
        "the first sub-folder"),
    Key("SSKD.FOLDERS.CropFolder.IDENTITY", "",
        "identity, likewise; only query, gallery and a source need it"),
    Key("SSKD.FOLDERS.CropFolder.TRACK", "",
        'tracklet under a camera, likewise; "": none. Groups (?P<frame>) and (?P<clip>): the frame and '
        "the recording that it counts in"),
    Key("SSKD.FOLDERS.CropFolder.JUNK", "",
        'images that take no place in a ranking, by a regular expression; "": names or sub-folders that '
        "begin with -1"),
    # ---- views
    Key("SSKD.ERASING.AREA", (0.02, 0.4),
        "random erasing (INPUT.REA.ENABLED): smallest and largest share of the image, in [0, 1]"),
    Key("SSKD.ERASING.ASPECT", (0.3, 3.3), "random erasing: smallest and largest height / width"),
    Key("SSKD.CACHE_IMAGES", 0,
        "keep decoded and resized 8-bit training images in memory that workers share, if all fit; one "
        "cache per rank; 0: decode each time [MB of 2^20 bytes]",
        _at_least(0, "a size in MB", "no cache"), resume="any"),
    # ---- pseudo-label refresh, before every epoch
    Key("SSKD.CLUSTER.K1", 20,
        "k1, number of k-reciprocal neighbors [images]",
        _at_least(1, "a number of images"), read_by="neighbors"),
    Key("SSKD.CLUSTER.K2", 6,
        "k2, neighbors of the query expansion; 1: none [images]",
        _at_least(1, "a number of images"), read_by="neighbors"),
    Key("SSKD.CLUSTER.VARIANT", "sskd",
        "\"sskd\" (the released code's and MMT's distance) or \"faiss\" (SpCL's, OpenUnReID's, "
        "fast-reid's)",
        OneOf(("sskd", "faiss")), read_by="neighbors"),
    Key("SSKD.CLUSTER.KNN", "auto",
        "neighbor search. Exact, with the same lists: \"auto\", \"torch\" (the model's device), \"faiss\" "
        '(its GPU where faiss-gpu finds one). Approximate, with the recall logged: "reduced" (fewer '
        "dimensions, then exact on the nearest)",
        OneOf(("auto", "torch", "faiss", "reduced")), read_by="neighbors"),
    Key("SSKD.CLUSTER.REDUCED_DIM", 0,
        "reduced: length that the features are projected to; 0: half of it, at most 256",
        _AUTOMATIC, read_by="neighbors"),
    Key("SSKD.CLUSTER.MIN_RECALL", 0.98,
        "reduced: share of the true neighbors to find, in (0, 1]; below it a warning",
        Rule(lambda value: 0 < value <= 1, "a ratio in (0, 1]"), read_by="neighbors"),
    Key("SSKD.CLUSTER.METHOD", "dbscan",
        'clustering, by its name in the registry: "dbscan", "infomap" (both on the pairs within eps), '
        '"hdbscan" (on the distances, without eps), "kmeans" (on the features, without noise)',
        read_by="stage 2"),
    Key("SSKD.CLUSTER.NUM_CLUSTERS", 0, "C of kmeans [clusters, >= 2]", read_by="stage 2"),
    Key("SSKD.CLUSTER.CAMERA_STATISTICS", False,
        "normalise the combined feature by each camera's mean and deviation before clustering, given two "
        "cameras or more; centroids and classifiers stay those of the feature itself",
        read_by="stage 2"),
    Key("SSKD.CLUSTER.EPS", 0.0,
        "eps, DBSCAN's radius as a Jaccard distance; 0: estimated at the first refresh",
        Rule(lambda value: 0 <= value < 1,
             "a Jaccard distance in (0, 1), or 0 to estimate it by PAIRS_PER_IMAGE or RHO"),
        resume="continue", read_by="radius"),
    Key("SSKD.CLUSTER.EPS_RULE", "pairs",
        "how eps is estimated: \"pairs\", the method's, by the next two keys; or from clusters at each of "
        'EPS_RADII without an oversized one: highest "silhouette", "plateau" (the largest radius with '
        'nearly that silhouette), highest "agreement" of the labels with those of the neighboring radii, '
        '"largest" radius',
        OneOf(("pairs", "silhouette", "plateau", "agreement", "largest")), read_by="radius"),
    Key("SSKD.CLUSTER.PAIRS_PER_IMAGE", 0.0,
        "eps is the mean of the PAIRS_PER_IMAGE * N smallest distances, where rho = 2 PAIRS_PER_IMAGE / (N "
        "- 1); 0: RHO holds",
        Rule(lambda value: value >= 0, "a number of pairs > 0, or 0 to estimate eps by RHO"),
        read_by="radius"),
    Key("SSKD.CLUSTER.RHO", 1.6e-3,
        "rho: eps is the mean of this share of the smallest non-zero distances. It depends on N: meant for "
        "10-20 thousand images",
        read_by="radius"),
    Key("SSKD.CLUSTER.EPS_RADII", [0.24, 0.28, 0.32, 0.36, 0.4, 0.44, 0.48, 0.52, 0.56, 0.6, 0.64, 0.68],
        "radii of the other rules",
        Rule(lambda radii: len(radii) > 1 and all(low < high for low, high in pairwise((0, *radii, 1))),
             "two or more ascending Jaccard distances in (0, 1)"),
        read_by="radii"),
    Key("SSKD.CLUSTER.EPS_LARGEST_SHARE", 0.03,
        "share of the images above which a cluster is oversized, and so are those of all larger radii; "
        "raise it where an identity may have so many",
        Rule(lambda value: 0 < value <= 1, "a share in (0, 1]"), read_by="radii"),
    Key("SSKD.CLUSTER.EPS_EVERY", 0,
        "estimate eps again every EPS_EVERY epochs; 0: only at the first refresh, as the method does",
        _at_least(0, "a number of epochs", "an estimate at the first refresh only"), read_by="radius"),
    Key("SSKD.CLUSTER.EPS_MIN", 0.0,
        "lower bound of an estimated eps, as a Jaccard distance; 0: none",
        Rule(lambda value: 0 <= value < 1, "a Jaccard distance in (0, 1), or 0 for no bound"),
        resume="continue", read_by="radius"),
    Key("SSKD.CLUSTER.EPS_MAX", 0.0,
        "upper bound of an estimated eps, >= EPS_MIN; 0: none",
        Rule(lambda value: 0 <= value <= 1, "a Jaccard distance in (0, 1], or 0 for no bound"),
        resume="continue", read_by="radius"),
    Key("SSKD.CLUSTER.MIN_SAMPLES", 4,
        "images within eps, itself included, that make an image the core of a cluster; hdbscan, infomap: "
        "smallest cluster [images; hdbscan: tracklets, where there are tracks]",
        _at_least(1, "a number of images"), read_by="neighbors"),
    Key("SSKD.CLUSTER.MAX_NOISE_SHARE", 0.9,
        "limit of the share of images without a cluster, in [0, 1]; 1: none",
        Rule(lambda value: 0 <= value <= 1, "a ratio in [0, 1]"), resume="continue", read_by="stage 2"),
    Key("SSKD.CLUSTER.MAX_LARGEST_SHARE", 0.25,
        "limit of the share of images in the largest cluster, in [0, 1]; 1: none",
        Rule(lambda value: 0 <= value <= 1, "a ratio in [0, 1]"), resume="continue", read_by="stage 2"),
    Key("SSKD.CLUSTER.ON_LIMIT", "warn",
        'a share above its limit is logged ("warn") or counts as a collapse ("collapse")',
        OneOf(("warn", "collapse")), resume="continue", read_by="stage 2"),
    Key("SSKD.CLUSTER.ON_COLLAPSE", "stop",
        "a collapse is: no cluster, one cluster, or (see ON_LIMIT) a share above its limit. It ends the "
        'run ("stop"), or the epoch uses the last good labels on new centroids ("keep"; the first refresh '
        "has none and stops)",
        OneOf(("stop", "keep")), resume="continue", read_by="stage 2"),
    # ---- source pre-training (stage 1)
    Key("SSKD.SOURCE.WEIGHTS", [],
        "weights of the source models: none (pre-train them), one for all peers, or one per peer; ours, "
        "any fast-reid checkpoint of the same backbone, or a bare backbone [paths]",
        resume="start"),
    Key("SSKD.SOURCE.CONFIG", "",
        "config that pre-trains a peer on the source when WEIGHTS is empty; relative to the file that "
        "names it [path]",
        resume="start"),
    Key("SSKD.SOURCE.SKIP", False,
        "no source: the peers start from MODEL.BACKBONE.PRETRAIN_PATH, or at random with PRETRAIN False, "
        "unless WEIGHTS are given, or MODEL.WEIGHTS in the file of a peer",
        resume="start"),
    Key("SSKD.SOURCE.OPTS", [],
        "overrides of that config, as on the command line; also for what it does not share with this run, "
        "as SSKD.PRECISION [KEY, value, KEY, value, ...]",
        resume="start"),
    Key("SSKD.SOURCE.CLASSIFIER_STD", 0.001,
        "in that config: standard deviation > 0 of the classifier's initial weights, normal with mean 0",
        resume="start"),
    Key("SSKD.SOURCE.BN_DATASETS", (),
        "in that config: data sets whose images, without labels, pass through batch norm in every step. "
        "Where a run of both stages has others here than its target, it takes its target [names]",
        resume="start"),
    # ---- fast-reid's own keys: ranges that it does not check in time, and what resume and stage 1 do with
    # them -------------
    Key("OUTPUT_DIR", HOST, resume="any"),
    Key("CUDNN_BENCHMARK", HOST, resume="any"),
    Key("MODEL.DEVICE", HOST, resume="any", shared=True),
    Key("MODEL.WEIGHTS", HOST, resume="start"),
    Key("MODEL.BACKBONE", HOST, shared=True),
    Key("MODEL.BACKBONE.PRETRAIN", HOST, resume="start"),
    Key("MODEL.BACKBONE.PRETRAIN_PATH", HOST, resume="start"),
    Key("MODEL.BACKBONE.FEAT_DIM", HOST, rule=_at_least(1, "a number of channels")),
    Key("MODEL.BACKBONE.NORM", HOST, rule=OneOf(("BN", "syncBN", "GhostBN", "FrozenBN", "GN"))),
    Key("MODEL.HEADS", HOST, shared=True),
    Key("MODEL.HEADS.EMBEDDING_DIM", HOST, rule=_at_least(0, "a number of values", "FEAT_DIM")),
    Key("MODEL.HEADS.NORM", HOST, rule=OneOf(("BN", "syncBN", "GhostBN", "FrozenBN", "GN"))),
    Key("MODEL.HEADS.NECK_FEAT", HOST, rule=OneOf(("before", "after"))),
    Key("MODEL.LOSSES.NAME", HOST, rule=OneOf(HOST_LOSSES), read_by="plain"),
    Key("MODEL.PIXEL_MEAN", HOST,
        rule=Rule(lambda value: len(value) == 3, "three values, of R, G and B"), shared=True),
    Key("MODEL.PIXEL_STD", HOST,
        rule=Rule(lambda value: len(value) == 3 and min(value) > 0, "three values > 0, of R, G and B"),
        shared=True),
    Key("INPUT.SIZE_TRAIN", HOST, rule=_SIZE, shared=True),
    Key("INPUT.SIZE_TEST", HOST, rule=_SIZE, shared=True),
    *(Key(f"INPUT.{name}.PROB", HOST, rule=_SHARE)
      for name in ("FLIP", "CJ", "AUTOAUG", "AUGMIX", "REA", "RPT")),
    Key("DATALOADER.NUM_WORKERS", HOST,
        rule=_at_least(0, "a number of processes"), resume="any", shared=True),
    Key("DATALOADER.NUM_INSTANCE", HOST, rule=_at_least(1, "a number of images")),
    # fast-reid's fifth sampler cannot work
    Key("DATALOADER.SAMPLER_TRAIN", HOST,
        read_by="plain",
        rule=OneOf(("TrainingSampler", "NaiveIdentitySampler", "BalancedIdentitySampler",
                    "ImbalancedDatasetSampler"))),
    Key("SOLVER.SCHED", HOST, rule=OneOf(("MultiStepLR", "CosineAnnealingLR"))),
    # see checkpoint.check_same_run
    Key("SOLVER.MAX_EPOCH", HOST, rule=_at_least(1, "a number of epochs"), resume="continue"),
    Key("SOLVER.IMS_PER_BATCH", HOST, rule=_at_least(1, "a number of images")),
    Key("SOLVER.BASE_LR", HOST, rule=_at_least(0, "a learning rate")),
    *(Key(f"SOLVER.{name}_LR_FACTOR", HOST, rule=_at_least(0, "a factor")) for name in ("HEADS", "BIAS")),
    *(Key(f"SOLVER.WEIGHT_DECAY{name}", HOST, rule=_at_least(0, "a weight"))
      for name in ("", "_NORM", "_BIAS")),
    Key("SOLVER.MOMENTUM", HOST, rule=Rule(lambda value: 0 <= value < 1, "a share in [0, 1)")),
    Key("SOLVER.GAMMA", HOST, rule=Rule(lambda value: value > 0, "a factor > 0")),
    Key("SOLVER.WARMUP_METHOD", HOST, rule=OneOf(("linear", "constant", "exp"))),
    Key("SOLVER.WARMUP_FACTOR", HOST, rule=_SHARE),
    *(Key(f"SOLVER.{name}_ITERS", HOST, rule=_at_least(0, "a number of iterations"))
      for name in ("WARMUP", "FREEZE")),
    Key("SOLVER.CHECKPOINT_PERIOD", HOST, rule=_at_least(1, "a number of epochs"), resume="any"),
    Key("TEST.EVAL_PERIOD", HOST, rule=_at_least(0, "a number of epochs", "never"), resume="continue"),
    Key("TEST.IMS_PER_BATCH", HOST, rule=_at_least(1, "a number of images"), resume="continue", shared=True),
    Key("TEST.METRIC", HOST, rule=OneOf(("cosine", "euclidean", "jaccard"))),
    *(Key(f"TEST.RERANK.{name}", HOST, rule=_at_least(1, "a number of neighbors")) for name in ("K1", "K2")),
    Key("TEST.RERANK.LAMBDA", HOST, rule=_SHARE),
)  # fmt: skip


#: keys of earlier versions, and what to do in their place; they are ignored with a warning, as a run's
#: ``config.yaml`` may hold them
REMOVED = {
    "SSKD.AMP_DTYPE": "the type of the networks' passes is SSKD.PRECISION: move its value, auto, bfloat16 or "
    "float16, there",
    "SSKD.AUGMENT_ON": "views are always made by the loader's workers, with the same pixels: leave it out",
    "SSKD.CLUSTER.IVF_LISTS": "the search ivf was slower than an exact one: set KNN to auto or reduced",
    "SSKD.CLUSTER.IVF_PROBES": "the search ivf was slower than an exact one: set KNN to auto or reduced",
}


def add_sskd_config(cfg: CfgNode) -> None:
    """Add ``cfg.SSKD`` and ``cfg.SEED`` to a fast-reid config, with the method's values as defaults.

    A key of fast-reid keeps its meaning: ``DATASETS.NAMES`` is what this run trains on (the target in
    adaptation, the source in pre-training), ``SOLVER.MAX_EPOCH`` counts epochs of ``SSKD.ITERS_PER_EPOCH``
    iterations.

    Args:
        cfg: a config from ``fastreid.config.get_cfg()``, not frozen. Changed in place.
    """
    for key in KEYS:
        if key.default is HOST:
            continue
        *sections, name = key.name.split(".")
        node = cfg
        for section in sections:
            if section not in node:
                node[section] = type(cfg)(new_allowed=section == "FOLDERS")
            node = node[section]
        node[name] = copy.copy(key.default)


def check_value(name: str, value: Any, rule: Rule | OneOf) -> None:
    """Refuse, by a ValueError, a value that the rule of the key ``name`` does not allow."""
    if isinstance(rule, Rule):
        if not rule.allows(value):
            raise ValueError(
                f"{name} must be {rule.text}; got {value}: change it in the config or on the command line"
            )
        return
    for given in [value] if isinstance(value, str) else value:
        if given not in rule.names:
            meant = nearest(given, rule.names) or ": choose one of them"
            raise ValueError(f"{name} must be one of {', '.join(rule.names)}; got {given!r}{meant}")


def value_of(cfg: CfgNode, name: str) -> Any:
    """The value, or section, of a key by its name with sections."""
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def is_below(name: str, names: Collection[str]) -> bool:
    """Whether a key is one of ``names``, or in a section that is."""
    return any(name == other or name.startswith(f"{other}.") for other in names)


def names_with(*resume: str) -> tuple[str, ...]:
    """Names of the keys whose ``resume`` is one of those given."""
    return tuple(key.name for key in KEYS if key.resume in resume)


_RESUME = {"same": "no", "start": "without effect", "continue": "yes", "any": "yes"}


def reference() -> str:
    """The page ``docs/config.md``."""
    lines = [
        "# Config keys",
        "",
        "Made from the table in `fastreid_sskd/config.py` by `make reference`. The last column says",
        "whether a resumed run may have another value; `SSKD.MAY_DIFFER` lets any key differ.",
    ]
    section = None
    for key in KEYS:
        if key.default is HOST:
            continue
        now = ".".join(key.name.split(".")[:2]) if key.name.count(".") > 1 else "SSKD"
        if now != section:
            section = now
            lines += ["", f"## {section}", "", "| key | default | meaning | resume |", "|---|---|---|---|"]
        allowed = f" Must be {key.rule.text}." if isinstance(key.rule, Rule) else ""
        meaning = (f"{key.meaning[:1].upper()}{key.meaning[1:]}." + allowed).replace("|", "\\|")
        lines.append(f"| `{key.name}` | `{key.default!r}` | {meaning} | {_RESUME[key.resume]} |")
    return "\n".join(lines) + "\n"
