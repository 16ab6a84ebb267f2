"""The floor of a training step: what its networks' forward and backward passes take by themselves."""
from collections.abc import Sequence

import torch

from ...engine.train_step import Precision
from ...losses.precision import without_autocast
from ...modeling import SSKD

__all__ = ["BareStep"]


class BareStep:
    """Teachers forward, students forward and backward, of views and gradients that are there already.

    Without loading, losses, moving average or optimiser. It moves no parameter, only running statistics, so it may share its
    model with another step.

    Args:
        model: in training mode.
        views: K tensors (B, 3, H, W), normalised, on the model's device.
        labels: (B,).
        precision: of the forward passes.
    """

    def __init__(self, model: SSKD, views: Sequence[torch.Tensor], labels: torch.Tensor, precision: Precision):
        self.model = model
        self.views = views
        self.labels = labels
        self.precision = precision
        self._gradients: list[tuple[torch.Tensor, ...]] = []
        for student in model.students:
            shapes = (len(labels), student.feature_size), (len(labels), student.num_classes)
            self._gradients.append(tuple(torch.randn(shape, device=model.device) / len(labels) for shape in shapes))

    def __call__(self) -> None:
        for student in self.model.students:
            for parameter in student.parameters():
                parameter.grad = None
        with torch.no_grad(), self.precision.autocast():
            for teacher, view in zip(self.model.teachers, self.views):
                teacher(view, self.labels)
        for student, view, gradients in zip(self.model.students, self.views, self._gradients):
            with self.precision.autocast():
                out = student(view, self.labels)
            outputs = (out["features"], out["cls_outputs"])
            with without_autocast(self.precision.device_type):
                torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(gradients, outputs)])
