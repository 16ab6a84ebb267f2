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
    # peers that differ: a fast-reid yml a peer, whose backbone, head, pixel values and MODEL.WEIGHTS (where it starts, unless
    # SSKD.SOURCE.WEIGHTS says) are taken; NUM_PEERS is their number. Relative to the file that names them [paths]
    _C.PEERS = []
    # the peers' way from images to features and logits: a registered meta-architecture with a backbone and one head, whose
    # forward is Baseline's or ends like it; a file of PEERS says its own with MODEL.META_ARCHITECTURE [name]
    _C.PEER_ARCHITECTURE = "Baseline"
    # what of the peers is combined for clusters and ensemble: "features" (the mean, the method's; for one space),
    # "distances" (their mean; every peer keeps a space and centroids of its own), "auto" (distances with PEERS)
    _C.COMBINE = "auto"
    # length of an epoch, whatever the number of images [iterations, >= 1]
    _C.ITERS_PER_EPOCH = 400
    # images that share batch-norm statistics: contiguous chunks of the batch [images; 0: the whole batch].
    # 16 is what four GPUs under DataParallel gave the authors at batch 64 (running statistics: the first chunk's).
    _C.BN_CHUNK = 0
    # what the model returns in evaluation: "best" (the teacher that was best on DATASETS.TESTS[0]; the first before
    # any evaluation), "ensemble" (normalised mean of the teachers' normalised features) or a peer's number (0)
    _C.EVAL_WITH = "best"
    # what model_best and its best teacher are chosen by: "mAP" on DATASETS.TESTS[0], or without labels, at the cost of a
    # refresh an epoch: "silhouette" of the clusters (noise counts 0), least "noise", "stability" of the labels
    _C.SELECT_BY = "mAP"
    # several processes: losses of the whole batch, of features and logits gathered with their gradient, as one process computes
    # them; False: each process's own (multi-similarity and the nuclear norm then see a share)
    _C.GATHER_LOSSES = True
    # how often losses are written to the log, metrics.json and TensorBoard [iterations, >= 1]
    _C.LOG_PERIOD = 50
    # how many of the periodic checkpoints are kept beside model_best and model_final, and of those inside epochs [files, >= 1]
    _C.KEEP_CHECKPOINTS = 2
    # save inside an epoch too, this long after the last checkpoint [seconds; 0: not by time]
    _C.CHECKPOINT_SECONDS = 1800
    # and whenever the number of steps done is a multiple of this [iterations; 0: not by steps]
    _C.CHECKPOINT_ITERS = 0
    # a checkpoint of another config is refused; keys that were changed on purpose, with those below them [names]
    _C.MAY_DIFFER = []
    # same result bit for bit on the same device: deterministic kernels only, which are slower, and an error where torch has none
    _C.DETERMINISTIC = False
    # type of SOLVER.AMP.ENABLED's forward pass: "float16" (CUDA), "bfloat16", or "auto", which measures the first batch and
    # takes the faster of float32 and the device's half type; the choice is kept in checkpoints
    _C.AMP_DTYPE = "auto"
    # feature maps in memory as (B, H, W, C), which some devices and networks are faster with; results differ by rounding
    _C.CHANNELS_LAST = False
    # backbones through torch.compile; where that fails, the reason is logged and they run as they are
    _C.COMPILE = False

    # ---- mean teachers ------------------------------------------------------------------------------------------
    _C.EMA = node()
    # upper bound of alpha in  teacher <- alpha teacher + (1 - alpha) student,  alpha = min(1 - 1/(t+1), MOMENTUM)
    _C.EMA.MOMENTUM = 0.999
    # the same bound by how much of the run the teachers average over: 1 - 1 / (WINDOW * steps of the run), in place of MOMENTUM.
    # The method's 0.999 is an eighth of its 8,000 steps [share of the steps, (0, 1]; 0: MOMENTUM says]
    _C.EMA.WINDOW = 0.0

    # ---- soft labels: what a teacher's logits become for the peer that learns from them -------------------------------
    _C.SOFT_LABELS = node()
    # statistics of the teachers' batch norm when they label: those of the "batch", the method's; "running", each teacher's own,
    # which follow its train-mode passes all the same (K forward passes more); "student", averages of the student's along with the
    # weights; "refresh", estimated again on the target's images at every refresh (the last two without train-mode passes)
    _C.SOFT_LABELS.BN = "batch"
    # T, which divides the teachers' logits, not the students'; the method has 1 [> 0; 0: found at every refresh]
    _C.SOFT_LABELS.TEMPERATURE = 1.0
    # TEMPERATURE 0: mean of the teachers' highest probability, on a sample of the labelled images, that T is set to give, (0, 1)
    _C.SOFT_LABELS.CONFIDENCE = 0.8

    # ---- losses: one node a registered loss, its WEIGHT (0: not computed) and its parameters --------------------
    # another project's loss: register it in SSKD_LOSS_REGISTRY and add a node of its name here
    _C.LOSSES = node()
    # L_id, cross entropy with smoothed pseudo-labels; weight 1 - w
    _C.LOSSES.LabelSmoothCE = node({"WEIGHT": 0.5})
    # epsilon, the share of the target spread evenly over all classes [0, 1]
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
    # Cluster-Contrast's InfoNCE against one vector a cluster (arXiv 2103.11568), kept in the classifier, so that no loss of the
    # logits goes with it (LabelSmoothCE, SoftCE, NuclearNorm); off in the method
    _C.LOSSES.ClusterContrast = node({"WEIGHT": 0.0})
    # tau, what the cosines are divided by [> 0]; m, the old vector's weight when an image moves it [0, 1]
    _C.LOSSES.ClusterContrast.TEMPERATURE = 0.05
    _C.LOSSES.ClusterContrast.MOMENTUM = 0.1
    # MMT's soft triplet with hard labels, and with the next peer's teacher; off in the method as released
    _C.LOSSES.SoftTriplet = node({"WEIGHT": 0.0})
    # m, the softened target of the margin form [0, 1]
    _C.LOSSES.SoftTriplet.MARGIN = 0.0
    _C.LOSSES.PeerSoftTriplet = node({"WEIGHT": 0.0})

    # ---- folders of crops -------------------------------------------------------------------------------------------
    # data sets that are folders of images, by the names that DATASETS.NAMES and TESTS call them; add a node for each
    # further one. See fastreid_sskd.data.CropFolder.
    _C.FOLDERS = node(new_allowed=True)
    _C.FOLDERS.CropFolder = node()
    # images to train on; query and gallery to evaluate with, both or none [folders below FASTREID_DATASETS, or absolute]
    _C.FOLDERS.CropFolder.TRAIN = ""
    _C.FOLDERS.CropFolder.QUERY = ""
    _C.FOLDERS.CropFolder.GALLERY = ""
    # camera and identity in a path below its folder: the first group of a regular expression; "": none.
    # "^([^/]+)/" is the first sub-folder. Only query and gallery (and a source) need identities.
    _C.FOLDERS.CropFolder.CAMERA = ""
    _C.FOLDERS.CropFolder.IDENTITY = ""
    # images that take no place in a ranking, by a regular expression too; "": names or sub-folders that begin with -1
    _C.FOLDERS.CropFolder.JUNK = ""

    # ---- views --------------------------------------------------------------------------------------------------
    # random erasing's rectangle, used where INPUT.REA.ENABLED: share of the image [0, 1] and height / width
    _C.ERASING = node()
    _C.ERASING.AREA = (0.02, 0.4)
    _C.ERASING.ASPECT = (0.3, 3.3)

    # keep decoded and resized training images, 8-bit, in memory that workers share, if they all fit; a process each
    # has its own [MB of 2^20 bytes; 0: read every image again each time]
    _C.CACHE_IMAGES = 0

    # ---- pseudo-label refresh, before every epoch ---------------------------------------------------------------
    _C.CLUSTER = node()
    # k1, k-reciprocal neighbours; k2, neighbours of the query expansion (1: none) [images, >= 1]
    _C.CLUSTER.K1 = 20
    _C.CLUSTER.K2 = 6
    # "sskd" (the released code's and MMT's distance) or "faiss" (SpCL's, OpenUnReID's, fast-reid's)
    _C.CLUSTER.VARIANT = "sskd"
    # search for the neighbours: "auto", "torch" (the model's device), "faiss" (its GPU where faiss-gpu sees one), which
    # give the same lists; or approximate, with the recall logged: "reduced" (in fewer dimensions, then exact for what is
    # near) and "ivf" (faiss's inverted lists)
    _C.CLUSTER.KNN = "auto"
    # reduced: length that the features are projected to [0: half of it, at most 256]
    _C.CLUSTER.REDUCED_DIM = 0
    # ivf: cells that the features are divided into [cells; 0: 4 sqrt(N)]
    _C.CLUSTER.IVF_LISTS = 0
    # ivf: cells searched for each image [cells; 0: as many as a sample needs for MIN_RECALL]
    _C.CLUSTER.IVF_PROBES = 0
    # reduced, ivf: share of the true neighbours to be found, below it a warning (0, 1]
    _C.CLUSTER.MIN_RECALL = 0.98
    # clustering, by its name in the registry: "dbscan", "infomap" (both of the pairs within eps), "hdbscan" (of the
    # distances, no eps), "kmeans" (of the features, no noise)
    _C.CLUSTER.METHOD = "dbscan"
    # kmeans: C [clusters, >= 2]
    _C.CLUSTER.NUM_CLUSTERS = 0
    # take each camera's mean and deviation out of the combined feature before it is clustered, where there are two cameras or
    # more; centroids and classifiers are those of the feature itself
    _C.CLUSTER.CAMERA_STATISTICS = False
    # DBSCAN's radius; it is set once, at the first refresh, by the first of these that is given:
    # EPS itself, as a Jaccard distance (0, 1)
    _C.CLUSTER.EPS = 0.0
    # how it is found: "pairs", the method's, by one of the next two keys; or by clusters at each of EPS_RADII, of those without
    # a too large one: highest "silhouette", "plateau" (the largest radius with a silhouette of nearly that), highest "agreement"
    # of the labels with the neighbouring radii's, "largest" radius
    _C.CLUSTER.EPS_RULE = "pairs"
    # mean of the PAIRS_PER_IMAGE * N smallest distances (= rho (N - 1) / 2, so independent of N) [pairs per image]
    _C.CLUSTER.PAIRS_PER_IMAGE = 0.0
    # rho: mean of this share of the smallest non-zero distances. It depends on N: meant for 10-20 thousand images
    _C.CLUSTER.RHO = 1.6e-3
    # radii that the other rules try [ascending Jaccard distances in (0, 1)]
    _C.CLUSTER.EPS_RADII = [0.24, 0.28, 0.32, 0.36, 0.4, 0.44, 0.48, 0.52, 0.56, 0.6, 0.64, 0.68]
    # share of the images above which a cluster is too large, and so are those of all larger radii; to be raised where an identity
    # may have so many [(0, 1]]
    _C.CLUSTER.EPS_LARGEST_SHARE = 0.03
    # estimate eps again at every EPS_EVERY-th epoch [epochs; 0: only at the first refresh, as the method does]
    _C.CLUSTER.EPS_EVERY = 0
    # bounds that an estimated eps is moved into, as Jaccard distances: MIN < 1, MIN <= MAX <= 1 [0: none]
    _C.CLUSTER.EPS_MIN = 0.0
    _C.CLUSTER.EPS_MAX = 0.0
    # images within EPS, itself included, that make an image the core of a cluster; hdbscan and infomap: images that
    # make a cluster [images, >= 1]
    _C.CLUSTER.MIN_SAMPLES = 4
    # limits of the share of images without a cluster and of those in the largest one [0, 1]; 1: no limit
    _C.CLUSTER.MAX_NOISE_SHARE = 0.9
    _C.CLUSTER.MAX_LARGEST_SHARE = 0.25
    # a share above its limit is warned of ("warn") or counts as collapse ("collapse")
    _C.CLUSTER.ON_LIMIT = "warn"
    # collapse is: no cluster, one cluster, or (see ON_LIMIT) a share above its limit. It ends the run ("stop"), or the
    # epoch goes on with the last good labels, on new centroids ("keep"; the first refresh has none and stops)
    _C.CLUSTER.ON_COLLAPSE = "stop"

    # ---- source pre-training (stage 1) --------------------------------------------------------------------------
    _C.SOURCE = node()
    # weights of the source models: none (pre-train them), one for all peers, or one a peer; ours or any fast-reid
    # checkpoint of the same backbone, or a bare backbone [paths]
    _C.SOURCE.WEIGHTS = []
    # the config that pre-trains a peer on the source when WEIGHTS is empty; relative to the file that names it [path]
    _C.SOURCE.CONFIG = ""
    # no source: the peers start from MODEL.BACKBONE.PRETRAIN_PATH, or at random with PRETRAIN False, unless WEIGHTS are given,
    # or MODEL.WEIGHTS in the file of a peer
    _C.SOURCE.SKIP = False
    # overrides of that config, as on the command line; also for what it does not share with this run, as SOLVER.AMP.ENABLED
    # [KEY, value, KEY, value, ...]
    _C.SOURCE.OPTS = []
    # in that config: standard deviation of the classifier's initial weights, which are normal with mean 0 [> 0]
    _C.SOURCE.CLASSIFIER_STD = 0.001
    # in that config: data sets whose images, without labels, pass through batch norm in every step [names]. Where a run of both
    # stages finds others here than its target, it takes its target
    _C.SOURCE.BN_DATASETS = ()
