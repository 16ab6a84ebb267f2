"""The host's transforms, split into what is done once per image and what is drawn anew for every view."""
import logging
from collections.abc import Callable

import torchvision.transforms as T
from fastreid.config import CfgNode
from fastreid.data.transforms import build_transforms

from .views import Views, without_numbers

__all__ = ["PLACES", "build_view_transforms", "build_views"]

logger = logging.getLogger("fastreid.sskd.data")

PLACES = ("worker", "device")  # where SSKD.AUGMENT_ON may have views made


def build_view_transforms(cfg: CfgNode) -> tuple[Callable, Callable]:
    """Training transforms as a pair: ``once`` (resize) and ``augment`` (everything random, then to a tensor).

    Differs from the host where the method does: random erasing draws its rectangle from ``SSKD.ERASING``. The host
    erases before the pixels are normalised, so ``INPUT.REA.VALUE`` is in units of 0..255; the method's fill of
    (.485, .456, .406) in *normalised* units is (152.0, 142.3, 126.8) there. torchvision draws the aspect
    log-uniformly, where the released code draws it uniformly.

    Returns:
        ``once``: PIL image -> PIL image; ``augment``: PIL image -> float tensor (3, H, W) in 0..255.
    """
    steps = list(build_transforms(cfg, is_train=True).transforms)
    once = []
    while steps and isinstance(steps[0], T.Resize):
        once.append(steps.pop(0))
    for i, step in enumerate(steps):
        if isinstance(step, T.RandomErasing):
            steps[i] = T.RandomErasing(
                p=step.p, scale=tuple(cfg.SSKD.ERASING.AREA), ratio=tuple(cfg.SSKD.ERASING.ASPECT), value=step.value
            )
    return T.Compose(once), T.Compose(steps)


def build_views(cfg: CfgNode) -> tuple[Callable, Callable | Views]:
    """As :func:`build_view_transforms`, with :class:`.views.Views` for ``augment`` where it has the same pixels.

    It has not if a transform beyond padding, crop, flip and erasing is on (colour jitter, AutoAugment, ...): then the host's
    own are applied in the workers, wherever ``SSKD.AUGMENT_ON`` wants it, which is logged.

    Raises:
        ValueError: if ``SSKD.AUGMENT_ON`` is no place.
    """
    if cfg.SSKD.AUGMENT_ON not in PLACES:
        raise ValueError(f"SSKD.AUGMENT_ON must be {' or '.join(PLACES)}, got {cfg.SSKD.AUGMENT_ON!r}")
    once, augment = build_view_transforms(cfg)
    unknown = without_numbers(augment.transforms)
    if not unknown:
        return once, Views(augment.transforms)
    level = logging.WARNING if cfg.SSKD.AUGMENT_ON == "device" else logging.INFO
    logger.log(level, "%s cannot be done in a batch: views are made by the workers, one after the other", ", ".join(unknown))
    return once, augment
