"""The configuration node of SSKD, added to a fast-reid config in the manner of detectron2's projects."""
from yacs.config import CfgNode

__all__ = ["add_sskd_config"]


def add_sskd_config(cfg: CfgNode) -> None:
    """Add ``cfg.SSKD`` and ``cfg.SEED`` to a fast-reid config, with the values of the method as defaults.

    Symbols are those of the method: K peers, alpha the teachers' decay, w the weight of the soft labels, k1, k2,
    rho and eps of the pseudo-label refresh. A key of fast-reid keeps its meaning: ``DATASETS.NAMES`` is what this
    run trains on (the target in adaptation, the source in pre-training), ``SOLVER.MAX_EPOCH`` counts epochs of
    ``SSKD.ITERS_PER_EPOCH`` iterations.

    Args:
        cfg: a config from ``fastreid.config.get_cfg()``, not frozen. Changed in place.
    """
    node = type(cfg)
    # Seed of every random number generator of the run, >= 0; -1: a new one each time. Host: none (by time and pid).
    cfg.SEED = -1

    _C = cfg.SSKD = node()
    # K, number of peers, each a student and its mean teacher [networks, >= 1]
    _C.NUM_PEERS = 3
    # length of an epoch, whatever the number of images [iterations]
    _C.ITERS_PER_EPOCH = 400
    # images that share batch-norm statistics: contiguous chunks of the batch [images; 0: the whole batch].
    # 16 is what four GPUs under DataParallel gave the authors at batch 64 (running statistics: the first chunk's).
    _C.BN_CHUNK = 0
    # what the model returns in evaluation: "best" (the teacher that was best on DATASETS.TESTS[0]; the first before
    # any evaluation), "ensemble" (normalised mean of the teachers' normalised features) or a peer's number ("0")
    _C.EVAL_WITH = "best"
    # how often losses are written to the log, metrics.json and TensorBoard [iterations]
    _C.LOG_PERIOD = 50
    # how many of the periodic checkpoints are kept beside model_best and model_final [files, >= 1]
    _C.KEEP_CHECKPOINTS = 2

    # ---- mean teachers ------------------------------------------------------------------------------------------
    _C.EMA = node()
    # upper bound of alpha in  teacher <- alpha teacher + (1 - alpha) student,  alpha = min(1 - 1/(t+1), MOMENTUM)
    _C.EMA.MOMENTUM = 0.999

    # ---- losses: one node a registered loss, its WEIGHT (0: not computed) and its parameters --------------------
    # another project's loss: register it in SSKD_LOSS_REGISTRY and add a node of its name here
    _C.LOSSES = node()
    # L_id, cross entropy with smoothed pseudo-labels; weight 1 - w
    _C.LOSSES.LabelSmoothCE = node({"WEIGHT": 0.5})
    # epsilon, the share of the target spread evenly over all classes [0, 1)
    _C.LOSSES.LabelSmoothCE.EPSILON = 0.1
    # L_soft, cross entropy with the next peer's teacher; weight w
    _C.LOSSES.SoftCE = node({"WEIGHT": 0.5})
    # L_ms, multi-similarity on the features before the BN-neck; weight w_ms
    _C.LOSSES.MultiSimilarity = node({"WEIGHT": 3.0})
    # slope of the positive and of the negative term, similarity at their middle, margin of the mining
    _C.LOSSES.MultiSimilarity.ALPHA = 2.0
    _C.LOSSES.MultiSimilarity.BETA = 40.0
    _C.LOSSES.MultiSimilarity.BASE = 0.5
    _C.LOSSES.MultiSimilarity.MARGIN = 0.1
    # L_nn, negative batch nuclear norm of the predictions; weight w_nn
    _C.LOSSES.NuclearNorm = node({"WEIGHT": 1.5})
    # MMT's soft triplet with hard labels, and with the next peer's teacher; off in the method as released
    _C.LOSSES.SoftTriplet = node({"WEIGHT": 0.0})
    # m, the softened target of the margin form [0, 1]
    _C.LOSSES.SoftTriplet.MARGIN = 0.0
    _C.LOSSES.PeerSoftTriplet = node({"WEIGHT": 0.0})

    # ---- views --------------------------------------------------------------------------------------------------
    # random erasing's rectangle, used where INPUT.REA.ENABLED: share of the image [0, 1] and height / width
    _C.ERASING = node()
    _C.ERASING.AREA = (0.02, 0.4)
    _C.ERASING.ASPECT = (0.3, 3.3)

    # ---- pseudo-label refresh, before every epoch ---------------------------------------------------------------
    _C.CLUSTER = node()
    # k1, k-reciprocal neighbours; k2, neighbours of the query expansion (1: none) [images]
    _C.CLUSTER.K1 = 20
    _C.CLUSTER.K2 = 6
    # "sskd" (the released code's and MMT's distance) or "faiss" (SpCL's, OpenUnReID's, fast-reid's)
    _C.CLUSTER.VARIANT = "sskd"
    # search for the neighbours: "auto", "torch" (the model's device), "faiss"
    _C.CLUSTER.KNN = "auto"
    # clustering of the distances, by its name in the registry
    _C.CLUSTER.METHOD = "dbscan"
    # DBSCAN's radius; the first of these three that is > 0 sets it, once, at the first refresh:
    # EPS itself, as a Jaccard distance (0, 1)
    _C.CLUSTER.EPS = 0.0
    # mean of the PAIRS_PER_IMAGE * N smallest distances (= rho (N - 1) / 2, so independent of N) [pairs per image]
    _C.CLUSTER.PAIRS_PER_IMAGE = 0.0
    # rho: mean of this share of the smallest non-zero distances. It depends on N: meant for 10-20 thousand images
    _C.CLUSTER.RHO = 1.6e-3
    # images within EPS, itself included, that make an image the core of a cluster [images]
    _C.CLUSTER.MIN_SAMPLES = 4

    # ---- source pre-training (stage 1) --------------------------------------------------------------------------
    _C.SOURCE = node()
    # weights of the source models: none (pre-train them), one for all peers, or one a peer; ours or any fast-reid
    # checkpoint of the same backbone, or a bare backbone [paths]
    _C.SOURCE.WEIGHTS = []
    # the config that pre-trains a peer on the source when WEIGHTS is empty; relative to the file that names it [path]
    _C.SOURCE.CONFIG = ""
    # overrides of that config, as on the command line [KEY, value, KEY, value, ...]
    _C.SOURCE.OPTS = []
    # in that config: data sets whose images, without labels, pass through batch norm in every step [names]
    _C.SOURCE.BN_DATASETS = ()
