"""What a refresh takes from the target beside clusters: statistics, a temperature, a shared search."""

import copy
import dataclasses
import itertools
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.evaluation.evaluator import inference_context
from fastreid.utils import comm
from torch import nn
from torch.optim.swa_utils import update_bn

from ..clustering import Candidates, ClusterOptions, Shard, find_method, merge_shards, search_neighbors
from ..data import CropCache, Item, extraction_loader
from ..modeling import SSKD, peer_config
from ..precision import Precision
from ..processes import gather_rows, in_all, on_every

logger = logging.getLogger("fastreid.sskd.refresh")

#: labelled images that the sharpness of soft labels is measured on, at most
SAMPLE = 1024
#: halvings of the range of log T, and that range: temperatures relative to the logits' spread
_HALVINGS, _RANGE = 40, (1e-4, 1e4)


class _Moments:
    """Mean and variance of every channel of what a layer is given, over all calls (a forward pre-hook)."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def __call__(self, layer: nn.Module, args: tuple[torch.Tensor]) -> None:
        x = args[0].detach().double().transpose(0, 1).flatten(1)  # (channels, values)
        mean, count = x.mean(1), self.count + x.shape[1]
        step = mean - self.mean
        self.squares = self.squares + (x - mean[:, None]).square().sum(1)
        self.squares += step.square() * (self.count * x.shape[1] / count)
        self.mean, self.count = self.mean + step * (x.shape[1] / count), count


@torch.no_grad()
def estimate_necks(
    cfg: CfgNode,
    model: SSKD,
    items: Sequence[Item],
    absent: Sequence[Sequence[str]],
    cache: CropCache | None = None,
) -> None:
    """Give batch norms whose statistics the source weights did not bring those of the target's images.

    Such a neck is the identity at first, so the length of what it gives, and with it the sharpness of the
    soft labels, is the backbone's. Exact mean and variance over all images of the pooled features, in
    evaluation mode; student and teacher get the same.

    Args:
        absent: for each peer the tensors that its weights lacked, as :func:`..modeling.load_source_weights`
            returns them.
    """
    layers = [
        [name.removesuffix(".running_mean") for name in names if name.endswith(".running_mean")]
        for names in absent
    ]
    if not any(layers):
        return
    found, hooks = {}, []
    for k, names in enumerate(layers):
        for name in names:
            found[k, name] = _Moments()
            hooks.append(model.teachers[k].get_submodule(name).register_forward_pre_hook(found[k, name]))
    try:
        with inference_context(model), Precision(cfg).autocast():
            for batch in extraction_loader(cfg, items, cache=cache):
                model.teacher_features(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for (k, name), moments in found.items():
        for peer in (model.students[k], model.teachers[k]):
            layer = peer.get_submodule(name)
            layer.running_mean.copy_(moments.mean)
            layer.running_var.copy_(moments.squares / moments.count)
        text = "peer %d: the weights bring no statistics of %s: those of %d target images are taken"
        logger.info(text, k, name, len(items))


def find_temperature(logits: Sequence[torch.Tensor], confidence: float) -> float:
    """The T at which softmax(logits / T) has this mean highest probability, by bisection.

    It falls as T grows.

    Args:
        logits: (n, C) of each peer. confidence: in (0, 1); of up to 1 / C or so only a uniform label is as
            unsure.
    """
    gaps = [values.float() - values.float().amax(1, keepdim=True) for values in logits]
    spread = float(torch.stack([-gap.mean() for gap in gaps]).mean())
    if not spread > 0:  # nothing to sharpen
        return 1.0
    low, high = (np.log(end * spread) for end in _RANGE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        highest = torch.cat([1 / (gap / np.exp(middle)).exp().sum(1) for gap in gaps]).mean()
        low, high = (middle, high) if highest > confidence else (low, middle)
    return float(np.exp((low + high) / 2))


@torch.no_grad()
def soft_labels(
    cfg: CfgNode, model: SSKD, items: Sequence[Item], labels: np.ndarray, cache: CropCache | None = None
) -> dict[str, float]:
    """Find the temperature for ``SSKD.SOFT_LABELS.CONFIDENCE`` and describe the soft labels it gives.

    Measured in evaluation mode on at most :data:`SAMPLE` labelled images without augmentation, evenly taken
    from all. Call it when the classifiers are those of these labels.

    Args:
        labels: (N,) pseudo-labels of the items, -1 for none.

    Returns:
        {"temperature"}, and means over images and teachers: "label_probability" of the pseudo-label,
        "label_agreement", the share of images whose likeliest label it is, "label_entropy" [nats].
    """
    labelled = np.flatnonzero(labels >= 0)
    chosen = labelled[np.linspace(0, len(labelled) - 1, min(len(labelled), SAMPLE)).round().astype(int)]
    targets = torch.as_tensor(labels[chosen], device=model.device)
    logits: list[list[torch.Tensor]] = [[] for _ in model.teachers]
    done, autocast = 0, Precision(cfg).autocast
    for batch in extraction_loader(cfg, [items[i] for i in chosen], cache=cache):
        images = model.pixels(batch["images"])
        for teacher, found in zip(model.teachers, logits):
            with teacher.labelling(), autocast():
                found.append(teacher(images, targets[done : done + len(images)])["pred_class_logits"])
        done += len(images)
    every = [torch.cat(found) for found in logits]
    temperature = find_temperature(every, cfg.SSKD.SOFT_LABELS.CONFIDENCE)
    whole, targets = torch.cat(every), targets.repeat(len(every))
    log_p = (whole.float() / temperature).log_softmax(1)
    return {
        "temperature": temperature,
        "label_probability": float(log_p.gather(1, targets[:, None]).exp().mean()),
        "label_agreement": float((whole.argmax(1) == targets).float().mean()),
        "label_entropy": float(-(log_p.exp() * log_p).sum(1).mean()),
    }


#: rows whose candidates are sent and merged at a time, so that the main process never holds those of all
#: shards
_ROWS = 65_536


def shared_candidates(features: torch.Tensor, options: ClusterOptions, **search) -> Candidates | None:
    """Candidates of the neighbor search of ``pseudo_labels``, each rank having searched its shard.

    Every process has to call this with the same features (N, d) and options. Labels are those of one
    process's search, as :func:`merge_shards` says; what is sent does not depend on the features' columns.

    Returns:
        In the main process; None elsewhere, and where there is nothing to share: one process, or a method
        that searches no neighbours.

    Memory: every process holds candidates of all rows, O(N k), the main process besides those of all shards
        for 65,536.
    """
    if comm.get_world_size() == 1 or find_method(options.method).uses == "features":
        return None
    shard = Shard(comm.get_rank(), comm.get_world_size())
    own = in_all(lambda: search_neighbors(features, shard, options, **search))
    bounds = on_every(own.error)  # of one search all or none
    return _merged(own if own.error is None else dataclasses.replace(own, error=max(bounds)))


def _merged(own: Candidates) -> Candidates | None:
    """The candidates of all processes' shards, in the main process; those of this one are overwritten."""
    world = comm.get_world_size()
    names = ["indices", "approximate"] + ([] if own.farthest is None else ["farthest", "lowest"])
    for start in range(0, len(own.indices), _ROWS):
        mine = {name: getattr(own, name)[start : start + _ROWS] for name in names}
        of_all = {name: gather_rows(torch.from_numpy(values)) for name, values in mine.items()}
        if comm.is_main_process():
            parts = zip(*(values.chunk(world) for values in of_all.values()))
            whole = merge_shards(
                [dataclasses.replace(own, **{n: v.numpy() for n, v in zip(names, part)}) for part in parts]
            )
            for name in names:
                mine[name][...] = getattr(whole, name)
    return own if comm.is_main_process() else None


def one_network_config(cfg: CfgNode) -> CfgNode:
    """One network that learns from hard pseudo-labels only, in the same steps.

    It has the weight of ``SoftCE`` given to ``LabelSmoothCE``, and a teacher that *is* the student (decay 0).
    """
    cfg = copy.deepcopy(cfg)
    cfg.defrost()
    cfg.SSKD.NUM_PEERS = 1
    cfg.SSKD.PEERS = cfg.SSKD.PEERS[:1]
    cfg.SSKD.EVAL_WITH = "best"  # the only one
    cfg.SSKD.EMA.MOMENTUM = cfg.SSKD.EMA.WINDOW = 0.0
    cfg.SSKD.LOSSES.LabelSmoothCE.WEIGHT += cfg.SSKD.LOSSES.SoftCE.WEIGHT
    cfg.SSKD.LOSSES.SoftCE.WEIGHT = 0.0
    cfg.SSKD.LOSSES.PeerSoftTriplet.WEIGHT = 0.0
    return cfg


def supervised_config(cfg: CfgNode) -> CfgNode:
    """Config of the upper bound: one network with the target's identities, same source weights and steps."""
    cfg = peer_config(one_network_config(cfg), 0)
    cfg.SSKD.PEERS = []
    cfg.MODEL.META_ARCHITECTURE = "SSKDSource"
    cfg.SSKD.SOURCE.BN_DATASETS = ()
    cfg.TEST.EVAL_PERIOD = cfg.SOLVER.MAX_EPOCH
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.SOLVER.MAX_EPOCH
    return cfg


@torch.no_grad()
def reestimate_batch_norm(cfg: CfgNode, model: SSKD, items: Iterable[Item]) -> None:
    """Replace every teacher's batch-norm statistics by those of the given images: the cheapest adaptation.

    Averages over full batches of ``TEST.IMS_PER_BATCH``, as PreciseBN does, or with ``SSKD.BN_CHUNK`` over
    their full chunks; weights and students stay as they are.

    Args:
        cfg: for the test transforms and the batch size.
        model: the peers; changed in place, its mode is restored.
        items: (path, identity, camera) of N images; identities are not used.
    """
    mode = model.training
    loader = extraction_loader(cfg, list(items))
    full = max(1, len(loader.dataset) // loader.batch_size)
    for teacher in model.teachers:
        images = (model.pixels(batch["images"]) for batch in itertools.islice(loader, full))
        if chunk := cfg.SSKD.BN_CHUNK:  # of which a batch norm would count the first of a batch only
            parts = ((part, min(chunk, len(batch))) for batch in images for part in batch.split(chunk))
            images = (part for part, whole in parts if len(part) == whole)
        with Precision(cfg).autocast():
            update_bn(images, teacher)
    model.train(mode)
