"""Five steps, a refresh and five more steps of three tiny peers, against a loop written from the method.

The plain loop shares no code with the package: networks are dicts of tensors; losses, distances, clusters,
Adam, the teachers' average and batch norm are formulas and Python loops. Only convolution and gradients are
torch's.
"""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg
from fastreid.modeling.heads import EmbeddingHead
from torch import nn

from fastreid_sskd import add_sskd_config
from fastreid_sskd.clustering import pseudo_labels
from fastreid_sskd.engine.hooks import PeerEMA
from fastreid_sskd.engine.train_step import build_optimizer, reset_optimizer
from fastreid_sskd.evaluation.features import extract_features
from fastreid_sskd.losses import build_loss_set
from fastreid_sskd.modeling import SSKD, Peer, chunk_batch_norm, ensemble_feature

K, D, PEOPLE, IMAGES = 3, 10, 8, 6
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 58.0, 56.0)
LR, DECAY, MOMENTUM = 3.5e-4, 5e-4, 0.999
K1, K2, RHO, MIN_SAMPLES = 5, 3, 0.11, 4


# ---- the method, plainly -------------------------------------------------------------------------


def plain_batch_norm(net, name, x, training, chunk):
    """Biased variance to normalise with, unbiased to remember; of several chunks the first is remembered."""
    if training:
        parts = []
        for number, part in enumerate(x.split(chunk or len(x))):
            dims = [d for d in range(x.ndim) if d != 1]
            mean, var = part.mean(dims, keepdim=True), part.var(dims, unbiased=False, keepdim=True)
            parts.append((part - mean) / (var + 1e-5).sqrt())
            if number == 0:
                count = part.numel() / part.shape[1]
                for key, value in (("running_mean", mean), ("running_var", var * count / (count - 1))):
                    net[f"{name}.{key}"] = 0.9 * net[f"{name}.{key}"] + 0.1 * value.detach().flatten()
                net[f"{name}.num_batches_tracked"] = net[f"{name}.num_batches_tracked"] + 1
        x = torch.cat(parts)
    else:
        shape = [1, -1, *[1] * (x.ndim - 2)]
        mean, var = (net[f"{name}.{key}"].view(shape) for key in ("running_mean", "running_var"))
        x = (x - mean) / (var + 1e-5).sqrt()
    shape = [1, -1, *[1] * (x.ndim - 2)]
    return x * net[f"{name}.weight"].view(shape) + net[f"{name}.bias"].view(shape)


def plain_network(net, images, training=True, chunk=0):
    """Pooled feature before the neck, feature after it, logits."""
    x = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    x = plain_batch_norm(
        net, "backbone.bn1", F.conv2d(x, net["backbone.conv1.weight"], stride=2), training, chunk
    )
    x = F.conv2d(x.clamp_min(0), net["backbone.conv2.weight"])
    x = plain_batch_norm(net, "backbone.bn2", x, training, chunk).clamp_min(0)
    feature = x.mean(dim=(2, 3))
    neck = plain_batch_norm(net, "heads.bottleneck.0", feature, training, chunk)
    return feature, neck, neck @ net["heads.weight"].t()


def plain_multi_similarity(feature, labels):
    unit = feature / feature.square().sum(1, keepdim=True).sqrt()
    similarity = unit @ unit.t()
    size, total = len(labels), feature.sum() * 0
    for i in range(size):
        s = similarity[i].tolist()
        positives = [j for j in range(size) if labels[j] == labels[i] and s[j] < 1 - 1e-5]
        negatives = [j for j in range(size) if labels[j] != labels[i]]
        lowest, highest = (
            min((s[j] for j in positives), default=1),
            max((s[j] for j in negatives), default=-1),
        )
        kept = [j for j in positives if s[j] - 0.1 < highest], [j for j in negatives if s[j] + 0.1 > lowest]
        if kept[0] and kept[1]:
            total = total + 0.5 * (1 + (-2 * (similarity[i, kept[0]] - 0.5)).exp().sum()).log()
            total = total + (1 + (40 * (similarity[i, kept[1]] - 0.5)).exp().sum()).log() / 40
    return total / size


def plain_total(students, teachers, views, labels, chunk):
    """(1 - w) L_id + w L_soft + w_ms L_ms + w_nn L_nn, w = 0.5, w_ms = 3, w_nn = 1.5; and the four sums."""
    with torch.no_grad():
        taught = [plain_network(net, view, chunk=chunk)[2].softmax(1) for net, view in zip(teachers, views)]
    labels = labels.tolist()
    sums = dict.fromkeys(("id", "soft", "ms", "nn"), 0.0)
    for k, (net, view) in enumerate(zip(students, views)):
        feature, _, logits = plain_network(net, view, chunk=chunk)
        size, classes = logits.shape
        logarithm = logits - logits.exp().sum(1, keepdim=True).log()
        target = torch.full_like(logits, 0.1 / classes)
        for i in range(size):
            target[i, labels[i]] += 0.9
        sums["id"] = sums["id"] - (target * logarithm).sum() / size
        sums["soft"] = sums["soft"] - (taught[(k + 1) % K] * logarithm).sum() / size
        sums["ms"] = sums["ms"] + plain_multi_similarity(feature, labels)
        sums["nn"] = sums["nn"] - torch.linalg.svd(logits.softmax(1))[1].sum() / size
    return 0.5 * sums["id"] + 0.5 * sums["soft"] + 3 * sums["ms"] + 1.5 * sums["nn"], sums


class PlainAdam:
    """Kingma & Ba with torch's numbers, weight decay added to the gradient."""

    def __init__(self, parameters):
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.steps = 0

    def step(self, parameters, gradients):
        self.steps += 1
        moved = []
        for number, (value, gradient) in enumerate(zip(parameters, gradients)):
            gradient = gradient + DECAY * value
            first, second = self.moments[number]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient * gradient
            self.moments[number] = first, second
            first, second = first / (1 - 0.9**self.steps), second / (1 - 0.999**self.steps)
            moved.append(value - LR * first / (second.sqrt() + 1e-8))
        return moved


def plain_jaccard(features):
    """Steps 1 to 6 of the k-reciprocal Jaccard distance, dense."""
    n = len(features)
    d = 2 - 2 * features @ features.T
    d = d / d.max(axis=1, keepdims=True)
    rank = [sorted(range(n), key=lambda j, i=i: (j != i, d[i, j])) for i in range(n)]

    def reciprocal(i, k):
        return {j for j in rank[i][: k + 1] if i in rank[j][: k + 1]}

    v = np.zeros((n, n))
    half = round(K1 / 2)  # Python rounds half to even, as the method does
    for i in range(n):
        expanded = set(reciprocal(i, K1))
        for j in reciprocal(i, K1):
            candidate = reciprocal(j, half)
            if len(candidate & reciprocal(i, K1)) > 2 / 3 * len(candidate):
                expanded |= candidate
        weights = {j: math.exp(-d[i, j]) for j in expanded}
        for j, weight in weights.items():
            v[i, j] = weight / sum(weights.values())
    v = np.array([sum(v[j] for j in rank[i][:K2]) / K2 for i in range(n)])
    jaccard = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            shared = np.minimum(v[i], v[j]).sum()
            jaccard[i, j] = max(0.0, 1 - shared / (2 - shared))
    return jaccard


def plain_dbscan(distance, eps):
    n = len(distance)
    near = [[j for j in range(n) if distance[i, j] <= eps] for i in range(n)]
    labels, cluster = [-1] * n, 0
    for start in range(n):
        if labels[start] != -1 or len(near[start]) < MIN_SAMPLES:
            continue
        todo = [start]
        while todo:
            i = todo.pop()
            if labels[i] == -1:
                labels[i] = cluster
                if len(near[i]) >= MIN_SAMPLES:
                    todo += near[i]
        cluster += 1
    return np.array(labels)


def plain_refresh(teachers, images):
    """Labels, centroids, eps and the features that were clustered."""
    with torch.no_grad():
        each = [plain_network(net, images, training=False)[1] for net in teachers]
    unit = [f / f.square().sum(1, keepdim=True).sqrt() for f in each]
    features = sum(unit) / K
    features = (features / features.square().sum(1, keepdim=True).sqrt()).numpy()
    distance = plain_jaccard(features)
    upper = np.sort(distance[np.triu_indices(len(distance), 1)])
    upper = upper[upper > 1e-6]  # pairs of equal lists are 0 up to rounding
    eps = upper[: round(RHO * len(upper))].mean()
    labels = plain_dbscan(distance, eps)
    means = [features[labels == j].mean(axis=0) for j in range(labels.max() + 1)]
    return labels, np.array([mean / np.sqrt((mean**2).sum()) for mean in means]), eps, distance


class PlainRun:
    """K students and teachers as dicts of tensors, in the order of a state dict."""

    def __init__(self, states, trained, chunk):
        self.students = [{name: value.clone() for name, value in state.items()} for state in states]
        self.teachers = copy.deepcopy(self.students)
        self.trained, self.chunk, self.t = trained, chunk, 0
        self.new_adam()

    def new_adam(self):
        self.adam = PlainAdam([net[name] for net in self.students for name in self.trained])

    def step(self, views, labels):
        leaves = [
            net[name].detach().clone().requires_grad_() for net in self.students for name in self.trained
        ]
        keys = [(k, name) for k in range(K) for name in self.trained]
        for (k, name), leaf in zip(keys, leaves):
            self.students[k][name] = leaf
        total, sums = plain_total(self.students, self.teachers, views, labels, self.chunk)
        gradients = torch.autograd.grad(total, leaves)
        with torch.no_grad():
            for (k, name), value in zip(keys, self.adam.step(leaves, gradients)):
                self.students[k][name] = value
            alpha = min(1 - 1 / (self.t + 1), MOMENTUM)
            for student, teacher in zip(self.students, self.teachers):
                for name in teacher:
                    if "running" not in name and "num_batches" not in name:
                        teacher[name] = alpha * teacher[name] + (1 - alpha) * student[name]
        self.t += 1
        return total.detach(), {name: value.detach() for name, value in sums.items()}

    def start_epoch(self, centroids):
        for net in (*self.students, *self.teachers):
            net["heads.weight"] = centroids.clone()
        self.new_adam()


# ---- the package ---------------------------------------------------------------------------------


class TinyBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, D, 2, bias=False), nn.BatchNorm2d(D)

    def forward(self, images):
        return self.bn2(self.conv2(self.bn1(self.conv1(images)).relu())).relu()


class PackageRun:
    """The package's model, optimiser, teachers' hook and refresh, without its data sets and trainer."""

    def __init__(self, chunk):
        torch.manual_seed(0)
        students = []
        for _ in range(K):
            head = EmbeddingHead(
                feat_dim=D,
                embedding_dim=0,
                num_classes=4,
                neck_feat="before",
                pool_type="GlobalAvgPool",
                cls_type="Linear",
                scale=1,
                margin=0.0,
                with_bnneck=True,
                norm_type="BN",
            )
            students.append(Peer(TinyBackbone(), head))
            chunk_batch_norm(students[-1], chunk)
        weights = {"LabelSmoothCE": 0.5, "SoftCE": 0.5, "MultiSimilarity": 3.0, "NuclearNorm": 1.5}
        losses = build_loss_set([(name, weight, {}) for name, weight in weights.items()])
        self.model = SSKD(students=students, losses=losses, pixel_mean=MEAN, pixel_std=STD).double().train()
        cfg = get_cfg()
        add_sskd_config(cfg)
        cfg.SOLVER.OPT, cfg.SOLVER.BASE_LR = "Adam", LR
        cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = cfg.SOLVER.WEIGHT_DECAY_BIAS = DECAY
        self.optimizer = build_optimizer(cfg, list(self.model.students))
        self.ema = PeerEMA(self.model, MOMENTUM)
        self.ema.trainer = SimpleNamespace(
            iter=0, storage=SimpleNamespace(put_scalar=lambda *args, **kwargs: None)
        )

    def step(self, views, labels):
        losses = self.model({"images": torch.stack(views, dim=1), "targets": labels})
        total = sum(losses.values())
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.ema.after_step()
        self.ema.trainer.iter += 1
        return total.detach(), {name: value.detach() for name, value in losses.items()}

    def refresh(self, images):
        loader = [{"images": part} for part in images.split(16)]
        features = ensemble_feature(extract_features(self.model, loader))
        result = pseudo_labels(features, k1=K1, k2=K2, rho=RHO, min_samples=MIN_SAMPLES)
        self.model.reset_classifiers(torch.as_tensor(result.centroids))
        reset_optimizer(self.optimizer)
        return result


# ---- the same images for both --------------------------------------------------------------------


def target_images(generator):
    """48 images of 8 people: a pattern each, and noise that makes some of them hard."""
    patterns = torch.rand(PEOPLE, 3, 9, 7, generator=generator, dtype=torch.float64) * 255
    noise = torch.randn(PEOPLE * IMAGES, 3, 9, 7, generator=generator, dtype=torch.float64)
    return (patterns.repeat_interleave(IMAGES, 0) + 25 * noise).clamp(0, 255)


def batches(images, labels, count, generator):
    """Batches of 4 labels x 4 labelled images, each in K flipped and noisy views."""
    for _ in range(count):
        chosen = torch.randperm(int(labels.max()) + 1, generator=generator)[:4]
        rows = []
        for label in chosen:
            members = torch.nonzero(labels == label)[:, 0]
            rows += members[torch.randint(len(members), (4,), generator=generator)].tolist()
        views = []
        for _ in range(K):
            view = images[rows] + 5 * torch.randn(
                16, *images.shape[1:], generator=generator, dtype=torch.float64
            )
            views.append(view.flip(3) if torch.rand(1, generator=generator) < 0.5 else view)
        yield views, labels[rows]


def close(what, value, expected, tolerance, scale=1.0):
    """Compare to a relative tolerance; near 0, to that share of `scale`."""
    torch.testing.assert_close(
        value, expected, rtol=tolerance, atol=tolerance * float(scale), msg=lambda text: f"{what}: {text}"
    )


def compare(package, plain, tolerance):
    """Students, teachers, batch-norm buffers and Adam's moments."""
    for kind in ("students", "teachers"):
        for k, peer in enumerate(getattr(package.model, kind)):
            expected = getattr(plain, kind)[k]
            state = peer.state_dict()
            assert list(state) == list(expected)
            for name, value in state.items():
                close(f"{kind} {k} {name}", value, expected[name], tolerance)
    parameters = [dict(s.named_parameters())[name] for s in package.model.students for name in plain.trained]
    for parameter, (first, second) in zip(parameters, plain.adam.moments):
        state = package.optimizer.state[parameter]
        assert state["step"] == plain.adam.steps
        close("first moment", state["exp_avg"], first, tolerance, first.abs().max())
        close("second moment", state["exp_avg_sq"], second, tolerance, second.abs().max())


@pytest.mark.parametrize("chunk", [0, 8], ids=["whole batch", "chunks of 8"])
def test_trajectory(chunk):
    package = PackageRun(chunk)
    first = package.model.students[0]
    trained = [name for name, p in first.named_parameters() if p.requires_grad]
    assert trained == [
        "backbone.conv1.weight",
        "backbone.bn1.weight",
        "backbone.bn1.bias",
        "backbone.conv2.weight",
        "backbone.bn2.weight",
        "backbone.bn2.bias",
        "heads.weight",
        "heads.bottleneck.0.weight",
    ]
    plain = PlainRun([student.state_dict() for student in package.model.students], trained, chunk)
    generator = torch.Generator().manual_seed(1)
    images = target_images(generator)
    start = copy.deepcopy(package.model.state_dict())

    def run(labels, tolerance):
        for views, targets in batches(images, labels, 5, generator):
            total, losses = package.step([view.clone() for view in views], targets)
            expected_total, expected = plain.step(views, targets)
            close("total", total, expected_total, tolerance)
            for name, weight in (("id", 0.5), ("soft", 0.5), ("ms", 3.0), ("nn", 1.5)):
                value = sum(losses[f"loss_{name}_peer{k}"] for k in range(K))
                close(name, value, weight * expected[name], tolerance)
        compare(package, plain, tolerance)

    run(torch.arange(PEOPLE * IMAGES) // (2 * IMAGES), 1e-10)
    # the comparison is not of two runs that stand still
    for name, value in package.model.state_dict().items():
        frozen = name.endswith(("heads.bottleneck.0.bias", "best_peer"))
        assert torch.equal(value, start[name]) == frozen, name

    result = package.refresh(images)
    labels, centroids, eps, distance = plain_refresh(plain.teachers, images)
    assert result.eps == pytest.approx(eps, rel=1e-6)
    assert abs(distance - eps).min() > 1e-3  # no pair of images whose side of eps is a matter of rounding
    assert result.labels.tolist() == labels.tolist()
    assert labels.max() + 1 == 7 and (labels == -1).sum() > 5  # other clusters than before, and noise
    np.testing.assert_allclose(np.asarray(result.centroids), centroids, rtol=0, atol=2e-7)  # they are float32
    assert not package.optimizer.state

    # the rounding just seen is no part of the rest
    plain.start_epoch(torch.as_tensor(result.centroids).double())
    run(torch.from_numpy(labels), 1e-10)
