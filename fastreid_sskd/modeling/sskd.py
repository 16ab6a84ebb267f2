"""SSKD: K students that learn from pseudo-labels and from each other's mean teachers (arXiv 2009.05972)."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..losses import LossSet, PeerBatch, build_losses
from .peer import Peer, PixelNormalisation, build_peer, peer_config

#: ``SSKD.SOFT_LABELS.BN``: the batch-norm statistics of teachers when they label
LABEL_STATISTICS = ("batch", "running", "student", "refresh")

Each = Callable[[dict[str, torch.Tensor]], None]


@META_ARCH_REGISTRY.register()
class SSKD(nn.Module):
    """K peers, each a student and its mean teacher, with the losses between them.

    Training: ``forward({"images": (B, K, 3, H, W), "targets": (B,) pseudo-labels})`` gives student k and
    teacher k view k, both in train mode, and returns ``{"loss_<name>_peer<k>": weighted scalar}``; the sum is
    the method's total. With ``each``, see :meth:`training_losses`. Teachers get no gradient, but their
    batch-norm statistics follow their own passes, unless ``label_statistics`` is "student" or "refresh".

    Evaluation: ``forward({"images": (B, 3, H, W)})`` returns the feature (B, d) that ``eval_with`` names.

    Args:
        students: K networks, of equal shape or not.
        losses: the weighted losses of one student.
        pixel_mean, pixel_std: 3 values each, in units of 0..255.
        eval_with: "best", "ensemble" or a peer's number, see ``SSKD.EVAL_WITH``.
        combine: "features", the method's, for peers that share one feature space: the ensemble's feature is
            the mean, and its centroids are every peer's classifier. "distances" for peers that do not: the
            ensemble's distance is the mean, and every peer gets the centroids in its own space. See
            ``SSKD.COMBINE``.
        label_statistics: see ``SSKD.SOFT_LABELS.BN``; except with "batch", teachers label in evaluation mode.
        temperature: T, divides the logits of the teachers that a student learns from; not in the state dict.
    """

    @configurable
    def __init__(
        self,
        *,
        students: Sequence[Peer],
        losses: LossSet,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        eval_with: str = "best",
        combine: str = "features",
        label_statistics: str = "batch",
        temperature: float = 1.0,
    ):
        super().__init__()
        if len(students) < 1:
            raise ValueError("SSKD.NUM_PEERS must be at least 1, got 0")
        self.students = nn.ModuleList(students)
        self.teachers = nn.ModuleList(copy.deepcopy(student) for student in students)
        self.teachers.requires_grad_(False)
        self.losses = losses
        self.pixels = PixelNormalisation(pixel_mean, pixel_std)
        # the teacher that was best when the best metric so far was reached; -1: nothing evaluated yet
        self.register_buffer("best_peer", torch.tensor(-1))
        self.eval_with = self.check_eval_with(str(eval_with))
        self.combination = combine
        if combine not in COMBINATIONS:
            known = ", ".join(COMBINATIONS)
            raise ValueError(f"SSKD.COMBINE must be auto or one of {known}; got {combine!r}")
        self.label_statistics = label_statistics
        if label_statistics not in LABEL_STATISTICS:
            known = ", ".join(LABEL_STATISTICS)
            raise ValueError(f"SSKD.SOFT_LABELS.BN must be one of {known}; got {label_statistics!r}")
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Return the constructor's arguments from a config."""
        described, peers = len(cfg.SSKD.PEERS), cfg.SSKD.NUM_PEERS
        if described not in (0, peers):
            raise ValueError(f"SSKD.PEERS describes {described} peers, and SSKD.NUM_PEERS is {peers}")
        networks = [peer_config(cfg, k) for k in range(peers)]
        for network in networks:  # source models replace pre-trained backbones, whatever a peer's file says
            network.MODEL.BACKBONE.PRETRAIN &= cfg.MODEL.BACKBONE.PRETRAIN and not network.MODEL.WEIGHTS
        students = [build_peer(network, (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)) for network in networks]
        combine = cfg.SSKD.COMBINE
        if combine == "auto":
            combine = "distances" if cfg.SSKD.PEERS else "features"
        sizes = [student.feature_size for student in students]
        if combine == "features" and len(set(sizes)) > 1:
            raise ValueError(
                f"the peers' features have {', '.join(map(str, sizes))} values, and only features of one "
                "size have a mean: set SSKD.COMBINE to distances, or auto"
            )
        return {
            "students": students,
            "losses": build_losses(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "eval_with": cfg.SSKD.EVAL_WITH,
            "combine": combine,
            "label_statistics": cfg.SSKD.SOFT_LABELS.BN,
            "temperature": cfg.SSKD.SOFT_LABELS.TEMPERATURE or 1.0,  # 0: until the first refresh has found it
        }

    @property
    def num_peers(self) -> int:
        """K."""
        return len(self.students)

    @property
    def device(self) -> torch.device:
        """Where the model is; ``forward`` moves batches there."""
        return self.pixels.mean.device

    @property
    def feature_sizes(self) -> list[int]:
        """d_k of every peer."""
        return [student.feature_size for student in self.students]

    @property
    def centroid_size(self) -> int:
        """Columns of :meth:`combine`'s rows, and so of the centroids."""
        return sum(self.feature_sizes) if self.combination == "distances" else self.feature_sizes[0]

    def check_eval_with(self, eval_with: str) -> str:
        """Return a value of ``SSKD.EVAL_WITH``; ValueError if it is none."""
        names = ["best", "ensemble", *map(str, range(self.num_peers))]
        if eval_with not in names:
            raise ValueError(f"SSKD.EVAL_WITH must be one of {', '.join(names)}; got {eval_with!r}")
        return eval_with

    def chosen_peer(self, eval_with: str) -> int | None:
        """Return the teacher that ``eval_with`` names, None for the ensemble; "best" is first 0."""
        if self.check_eval_with(eval_with) == "ensemble":
            return None
        return max(int(self.best_peer), 0) if eval_with == "best" else int(eval_with)

    def forward(
        self, batched_inputs: dict, each: Each | None = None
    ) -> dict[str, torch.Tensor] | torch.Tensor:
        """Return the losses in training, the feature of ``eval_with`` in evaluation."""
        if self.training:
            return self.training_losses(batched_inputs, each)
        k = self.chosen_peer(self.eval_with)
        if k is None:
            return self.combine(self.teacher_features(batched_inputs))
        return self.teachers[k](self.pixels(batched_inputs["images"]))

    # ---- training --------------------------------------------------------------------------------

    def training_losses(self, batched_inputs: dict, each: Each | None = None) -> dict[str, torch.Tensor]:
        """Return the weighted losses of every peer; student k learns from teacher k+1 (cyclic) on view k+1.

        The teachers run first, so the students' graphs are independent. Where ``each`` runs the backward
        pass, only one student's activations are in memory at a time, and the gradients are those of the sum.

        Args:
            batched_inputs: see the class.
            each: called with one peer's losses before the next student runs; the losses returned are then
                detached.
        """
        images, labels = (
            batched_inputs[key].to(self.device, non_blocking=True) for key in ("images", "targets")
        )
        if images.ndim != 5 or images.shape[1] != self.num_peers:
            raise ValueError(
                f"SSKD trains on batches of shape (B, {self.num_peers}, 3, H, W), one view a peer; "
                f"got {tuple(images.shape)}"
            )
        views = [self.pixels(images[:, k]) for k in range(self.num_peers)]
        with torch.no_grad():
            taught = [self._taught(teacher, view, labels) for teacher, view in zip(self.teachers, views)]

        losses: dict[str, torch.Tensor] = {}
        for k, student in enumerate(self.students):
            learnt, own, next_peer = student(views[k], labels), taught[k], taught[(k + 1) % self.num_peers]
            batch = PeerBatch(
                features=learnt["features"],
                logits=learnt["cls_outputs"],
                labels=labels,
                **{f"teacher_{name}": value for name, value in own.items()},
                **{f"peer_teacher_{name}": value for name, value in next_peer.items()},
                memory=student.heads.weight,
            )
            of_peer = self.losses(batch, peer=k)
            if each is not None:
                each(of_peer)
                of_peer = {name: loss.detach() for name, loss in of_peer.items()}
            losses.update(of_peer)
        return losses

    def _taught(self, teacher: Peer, view: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a teacher's features and soft logits for its view; {} where no loss reads them."""
        outputs = {}
        if self.label_statistics == "batch":
            outputs = teacher(view, labels)
        elif any("teacher" in field for field in self.losses.requires):
            with teacher.labelling():
                outputs = teacher(view, labels)
        if self.label_statistics == "running":
            teacher(view, labels)  # moves the statistics as with "batch"
        if not outputs:
            return {}
        return {"features": outputs["features"], "logits": outputs["pred_class_logits"] / self.temperature}

    def update_teachers(self, step: int, momentum: float) -> float:
        """Update every teacher's moving average once; returns alpha, see :func:`ema_decay`."""
        decay = ema_decay(step, momentum)
        for teacher, student in zip(self.teachers, self.students):
            update_teacher(teacher, student, decay, statistics=self.label_statistics == "student")
        return decay

    def reset_classifiers(self, centroids: torch.Tensor) -> None:
        """Make the centroids of the combined feature the classifier of every student and teacher.

        Args:
            centroids: (C, d) normalised means of :meth:`combine`'s rows. Where these are concatenated, a
                peer's part, normalised, is the normalised mean of that peer's own normalised features.
        """
        own = [centroids] * self.num_peers
        if self.combination == "distances":
            if centroids.ndim != 2 or centroids.shape[1] != self.centroid_size:
                raise ValueError(
                    f"centroids must have shape (C, {self.centroid_size}), got {tuple(centroids.shape)}"
                )
            own = [F.normalize(part, dim=1) for part in centroids.split(self.feature_sizes, dim=1)]
        for rows, student, teacher in zip(own, self.students, self.teachers):
            student.reset_classifier(rows)
            teacher.reset_classifier(rows)

    # ---- evaluation ------------------------------------------------------------------------------

    def teacher_features(self, batched_inputs: dict) -> list[torch.Tensor]:
        """Return f_k of every teacher for images (B, 3, H, W): K tensors (B, d_k), not normalised."""
        images = self.pixels(batched_inputs["images"])
        return [teacher(images) for teacher in self.teachers]

    def combine(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Combine K features (N, d_k) to one (N, d) of unit length: what is clustered, and the ensemble's."""
        return COMBINATIONS[self.combination](features)


# ---- the ensemble's feature ----------------------------------------------------------------------


def ensemble_feature(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute F = normalise(mean_k normalise(f_k)), the feature that is clustered (method, refresh step 1).

    Args:
        features: K tensors (N, d) of one d.

    Returns:
        (N, d) of unit length.
    """
    return F.normalize(torch.stack([F.normalize(f.float(), dim=1) for f in features]).mean(0), dim=1)


def concatenated_feature(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute [normalise(f_1), ..., normalise(f_K)] / sqrt(K), which combines distances.

    The cosine of two such features is the mean of the K cosines, and their squared distance the mean of the K
    squared distances. The K spaces need neither the same size nor anything else in common.

    Args:
        features: K tensors (N, d_k).

    Returns:
        (N, d_1 + ... + d_K) of unit length.
    """
    return torch.cat([F.normalize(f.float(), dim=1) for f in features], dim=1) / math.sqrt(len(features))


#: ``SSKD.COMBINE``: what of the teachers is combined
COMBINATIONS = {"features": ensemble_feature, "distances": concatenated_feature}


# ---- the teachers' moving average ----------------------------------------------------------------


def ema_decay(step: int, momentum: float) -> float:
    """Compute alpha = min(1 - 1/(t+1), momentum): at t = 0 the teacher becomes the student.

    Args:
        step: t, the global step counted from 0; refreshes do not restart it.
        momentum: the upper bound of alpha, in [0, 1].
    """
    if step < 0:
        raise ValueError(f"the step of the teachers' decay must be >= 0, got {step}")
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"SSKD.EMA.MOMENTUM must be in [0, 1], got {momentum}")
    return min(1.0 - 1.0 / (step + 1), momentum)


def ema_momentum(momentum: float, window: float, steps: int) -> float:
    """Return the upper bound of alpha: ``momentum``, or that of a window over the steps where it is given.

    Args:
        momentum: ``SSKD.EMA.MOMENTUM``.
        window: ``SSKD.EMA.WINDOW``, ratio of the steps in (0, 1]; 0: not given.
        steps: of the whole run, >= 1.
    """
    return max(1.0 - 1.0 / (window * steps), 0.0) if window else momentum


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float, statistics: bool = False) -> None:
    """Update the parameters: teacher <- decay * teacher + (1 - decay) * student.

    Other buffers stay: in the method a teacher's batch-norm statistics come from its own forward passes
    (torch's ``AveragedModel`` would copy the student's).

    Args:
        teacher, student: networks of the same shape; the teacher's tensors are changed in place.
        decay: alpha in [0, 1], see :func:`ema_decay`.
        statistics: average the running means and variances of batch norm too.
    """

    def averaged(network: nn.Module) -> list[torch.Tensor]:
        buffers = network.named_buffers() if statistics else ()
        moving = [buffer for name, buffer in buffers if name.endswith(("running_mean", "running_var"))]
        return [parameter.detach() for parameter in network.parameters()] + moving

    get_ema_multi_avg_fn(decay)(averaged(teacher), averaged(student), 0)
