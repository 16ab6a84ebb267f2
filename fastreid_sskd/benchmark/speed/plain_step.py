"""The plain way through a training step: each formula of the method as a loop over what it sums, in float32.

For comparison only. Its losses are those of :mod:`fastreid_sskd.losses`; a test says so.
"""
import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms

from ...modeling import SSKD

__all__ = ["PlainStep", "looped_multi_similarity", "plain_batches", "plain_losses"]


def looped_multi_similarity(
    features: torch.Tensor, labels: torch.Tensor, alpha: float = 2.0, beta: float = 40.0, base: float = 0.5,
    margin: float = 0.1, itself: float = 1e-5,
) -> torch.Tensor:
    """Multi-similarity with mining, anchor by anchor; arguments as in :func:`fastreid_sskd.losses.multi_similarity`."""
    normalised = F.normalize(features, dim=1)
    similarity = normalised @ normalised.t()
    losses = []
    for i in range(len(features)):
        positives = similarity[i][labels == labels[i]]
        positives = positives[positives < 1 - itself]
        negatives = similarity[i][labels != labels[i]]
        if len(positives) < 1 or len(negatives) < 1:
            continue
        kept_negatives = negatives[negatives + margin > positives.min()]
        kept_positives = positives[positives - margin < negatives.max()]
        if len(kept_negatives) < 1 or len(kept_positives) < 1:
            continue
        losses.append(
            torch.log(1 + torch.exp(-alpha * (kept_positives - base)).sum()) / alpha
            + torch.log(1 + torch.exp(beta * (kept_negatives - base)).sum()) / beta
        )
    return sum(losses) / len(features) if losses else (features * 0).sum()


def plain_losses(
    cfg: CfgNode, features: torch.Tensor, logits: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor
) -> list[torch.Tensor]:
    """The method's four weighted losses of one student: features (B, d), logits and the next teacher's (B, C)."""
    losses = cfg.SSKD.LOSSES
    predictions = logits.log_softmax(dim=1)
    epsilon = losses.LabelSmoothCE.EPSILON
    smooth = F.one_hot(labels, logits.shape[1]) * (1 - epsilon) + epsilon / logits.shape[1]
    return [
        losses.LabelSmoothCE.WEIGHT * -(smooth * predictions).sum(dim=1).mean(),
        losses.SoftCE.WEIGHT * -(taught.softmax(dim=1) * predictions).sum(dim=1).mean(),
        losses.MultiSimilarity.WEIGHT * looped_multi_similarity(features, labels),
        losses.NuclearNorm.WEIGHT * -torch.linalg.matrix_norm(logits.softmax(dim=1), "nuc") / len(logits),
    ]


def plain_batches(cfg: CfgNode, items: Sequence[tuple], draws: Sequence[Sequence[tuple[int, int]]]) -> Iterator[dict]:
    """Batches of the host's images: each decoded, then K times through all of the host's transforms.

    Args:
        items: (path, identity, camera).
        draws: one list a batch, of (index of an item, its label).
    """
    transforms = build_transforms(cfg, is_train=True)
    for draw in draws:
        views = []
        for index, _ in draw:
            image = read_image(items[index][0])
            views.append(torch.stack([transforms(image) for _ in range(cfg.SSKD.NUM_PEERS)]))
        yield {"images": torch.stack(views), "targets": torch.tensor([label for _, label in draw])}


class PlainStep:
    """A step of all peers at once, with its own copy of the model.

    Args:
        cfg: the run's config.
        model: copied, the copy is trained.
    """

    def __init__(self, cfg: CfgNode, model: SSKD):
        self.cfg = cfg
        self.model = copy.deepcopy(model)
        parameters = [p for student in self.model.students for p in student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    def __call__(self, batch: dict, decay: float) -> list[float]:
        """One step; the losses as numbers, each waited for."""
        model = self.model
        images, labels = batch["images"].to(model.device), batch["targets"].to(model.device)
        views = [model.pixels(images[:, k]) for k in range(model.num_peers)]
        with torch.no_grad():
            taught = [teacher(view, labels)["pred_class_logits"] for teacher, view in zip(model.teachers, views)]
        losses: list[torch.Tensor] = []
        for k, (student, view) in enumerate(zip(model.students, views)):
            out = student(view, labels)
            losses += plain_losses(
                self.cfg, out["features"], out["cls_outputs"], taught[(k + 1) % model.num_peers], labels
            )
        self.optimizer.zero_grad()
        sum(losses).backward()
        self.optimizer.step()
        with torch.no_grad():
            for teacher, student in zip(model.teachers, model.students):
                for old, new in zip(teacher.parameters(), student.parameters()):
                    old.mul_(decay).add_(new, alpha=1 - decay)
        return [loss.item() for loss in losses]
