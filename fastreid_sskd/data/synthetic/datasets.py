"""The synthetic pair of domains as data sets of fast-reid: ``SyntheticSource`` and ``SyntheticTarget``.

People drawn from a seed stand in for a benchmark, so that a first run needs no download. Figures made with
them say whether the software works, nothing about real cameras.
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from .dice import Dice
from .domains import SOURCE, TARGET, Domain, render
from .folder_cache import ensure_folder, fallback_parents, fingerprint

logger = logging.getLogger("fastreid.sskd.data")

#: Raised whenever the same parameters give other pictures, so that old folders are not taken for new ones.
DRAWING_VERSION = 1
SPLITS = ("train", "query", "gallery")
Item = tuple[str, str | int, str | int]


@dataclass(frozen=True)
class Sizes:
    """How many people and images each split has.

    Attributes:
        train_people: identities of the training split.
        train_shots: (least, most) training images of a person in a camera that saw them.
        train_strangers: people with a single training image: what a clustering should call noise.
        test_people: identities of query and gallery, none of them in the training split.
        gallery_shots: (least, most) gallery images of a person in a camera that saw them, beside one query.
        gallery_strangers: people with a single gallery image and no query.
        absent: probability that a camera never saw a person; at least two cameras saw everybody.
    """

    train_people: int
    train_shots: tuple[int, int]
    train_strangers: int
    test_people: int
    gallery_shots: tuple[int, int]
    gallery_strangers: int
    absent: float

    def __post_init__(self) -> None:
        if self.train_people < 2 or self.test_people < 2:
            raise ValueError(
                f"both splits need 2 people or more, got {self.train_people} for training and "
                f"{self.test_people} for the test: raise train_people and test_people"
            )
        for name in ("train_shots", "gallery_shots"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ValueError(f"{name} is (least, most) with 1 <= least <= most, got {(least, most)}")
        if min(self.train_strangers, self.gallery_strangers) < 0 or not 0 <= self.absent < 1:
            raise ValueError(
                f"strangers must be >= 0 and absent in [0, 1), got {self.train_strangers}, "
                f"{self.gallery_strangers} and {self.absent}"
            )


class Shot(NamedTuple):
    """One image to be drawn: split, person, camera and its number; ``stranger`` for people of one image."""

    split: str
    identity: int
    camera: int
    shot: int
    stranger: bool


def plan_shots(sizes: Sizes, *, domain: str, cameras: int, seed: int) -> list[Shot]:
    """List the images of a data set, sorted by split, person, camera and shot.

    Identities count from 1 through training people, training strangers, test people and gallery strangers.
    """
    if cameras < 2:
        raise ValueError(f"re-identification needs 2 cameras or more, got {cameras}")
    shots: list[Shot] = []
    first = 1
    for identity in range(first, first + sizes.train_people):
        for camera, dice in _seen_by(identity, sizes, domain, cameras, seed):
            numbers = range(_count(sizes.train_shots, dice))
            shots += [Shot("train", identity, camera, number, False) for number in numbers]
    first += sizes.train_people
    shots += _strangers("train", range(first, first + sizes.train_strangers), domain, cameras, seed)
    first += sizes.train_strangers
    for identity in range(first, first + sizes.test_people):
        for camera, dice in _seen_by(identity, sizes, domain, cameras, seed):
            shots.append(Shot("query", identity, camera, 0, False))
            numbers = range(1, 1 + _count(sizes.gallery_shots, dice))
            shots += [Shot("gallery", identity, camera, number, False) for number in numbers]
    first += sizes.test_people
    shots += _strangers("gallery", range(first, first + sizes.gallery_strangers), domain, cameras, seed)
    return sorted(shots, key=lambda shot: (SPLITS.index(shot.split), *shot[1:]))


def _count(bounds: tuple[int, int], dice: Dice) -> int:
    least, most = bounds
    return least + dice.below(most - least + 1)


def _seen_by(identity: int, sizes: Sizes, domain: str, cameras: int, seed: int) -> list[tuple[int, Dice]]:
    """The cameras that saw a person, each with the dice for its number of images."""
    dice = Dice(seed, domain, "plan", identity)
    always = dice.order(cameras)[:2]
    seen = [camera for camera in range(cameras) if not dice.chance(sizes.absent) or camera in always]
    return [(camera, Dice(seed, domain, "plan", identity, camera)) for camera in seen]


def _strangers(split: str, identities: range, domain: str, cameras: int, seed: int) -> list[Shot]:
    return [Shot(split, i, Dice(seed, domain, "plan", i).below(cameras), 0, True) for i in identities]


class SyntheticDataset(ImageDataset):
    """A synthetic domain on disk, drawn when it is first asked for.

    Training items carry identities and cameras as strings prefixed with the data set's name, query and
    gallery items as integers, as in the host. One-off people of the gallery have identity 0, which no query
    has.

    Args:
        root: folder of data sets (FASTREID_DATASETS); the user's cache or a temporary folder serves where it
            cannot be written.
        sizes, seed, image_size: in place of the class's own; (height, width) in pixels.
        **kwargs: for :class:`fastreid.data.datasets.bases.ImageDataset`.

    Raises:
        OSError: when no folder can be written.
    """

    domain: Domain
    sizes: Sizes
    dataset_name: str
    seed: int = 0
    image_size: tuple[int, int] = (128, 64)
    _junk_pids: ClassVar[list[int]] = [0]

    def __init__(
        self, root: str = "datasets", *, sizes: Sizes | None = None, seed: int | None = None,
        image_size: tuple[int, int] | None = None, **kwargs,
    ) -> None:  # fmt: skip
        self.sizes = self.sizes if sizes is None else sizes
        self.seed = self.seed if seed is None else seed
        self.image_size = self.image_size if image_size is None else image_size
        cameras = len(self.domain.cameras)
        self.shots = plan_shots(self.sizes, domain=self.domain.name, cameras=cameras, seed=self.seed)
        description = self.description()
        name = f"sskd-synthetic-v{DRAWING_VERSION}-{self.domain.name}-{fingerprint(description)}"
        folder = ensure_folder(name, description, self._draw, [Path(root), *fallback_parents()])
        self.dataset_dir = str(folder)
        super().__init__(*(self._items(folder, split) for split in SPLITS), **kwargs)

    def description(self) -> dict:
        """Everything that decides the images, as the manifest of the folder holds it."""
        return {
            "drawing_version": DRAWING_VERSION,
            "domain": dataclasses.asdict(self.domain),
            "sizes": dataclasses.asdict(self.sizes),
            "seed": self.seed,
            "image_size": list(self.image_size),
        }

    def _items(self, folder: Path, split: str) -> list[Item]:
        def item(shot: Shot) -> Item:
            path, name = str(folder / _file_name(shot)), self.dataset_name
            if split == "train":
                return path, f"{name}_{shot.identity}", f"{name}_{shot.camera}"
            return path, 0 if shot.stranger else shot.identity, shot.camera

        return [item(shot) for shot in self.shots if shot.split == split]

    def _draw(self, folder: Path) -> None:
        logger.info(
            f"drawing {len(self.shots)} images of the synthetic {self.domain.name} into {folder.parent}"
        )
        for split in SPLITS:
            (folder / split).mkdir()
        for number, shot in enumerate(self.shots, start=1):
            image = render(
                self.domain, seed=self.seed, identity=shot.identity, camera=shot.camera, shot=shot.shot,
                size=self.image_size,
            )  # fmt: skip
            image.save(folder / _file_name(shot), compress_level=1)
            if number % 500 == 0 or number == len(self.shots):
                logger.info(f"synthetic {self.domain.name}: {number} of {len(self.shots)} images drawn")


def _file_name(shot: Shot) -> str:
    return f"{shot.split}/{shot.identity:04d}_c{shot.camera + 1}_s{shot.shot}.png"


@DATASET_REGISTRY.register()
class SyntheticSource(SyntheticDataset):
    """The labelled domain: summer clothes in daylight, 150 + 50 people, four cameras that nearly agree."""

    domain = SOURCE
    dataset_name = "synthetic_source"
    sizes = Sizes(
        train_people=150, train_shots=(3, 3), train_strangers=0,
        test_people=50, gallery_shots=(1, 1), gallery_strangers=0, absent=0.0,
    )  # fmt: skip


@DATASET_REGISTRY.register()
class SyntheticTarget(SyntheticDataset):
    """The unlabelled domain: winter clothes, 100 + 60 people and strangers, five cameras that disagree."""

    domain = TARGET
    dataset_name = "synthetic_target"
    sizes = Sizes(
        train_people=100, train_shots=(2, 5), train_strangers=30,
        test_people=60, gallery_shots=(1, 2), gallery_strangers=40, absent=0.15,
    )  # fmt: skip
