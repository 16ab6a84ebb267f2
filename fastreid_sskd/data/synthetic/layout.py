"""Which images a synthetic data set consists of: people, cameras and shots of every split."""

from dataclasses import dataclass
from typing import NamedTuple

from .dice import Dice

SPLITS = ("train", "query", "gallery")


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

    Identities count from 1 through training people, training strangers, test people and gallery strangers,
    so that no person is in two of these groups.

    Args:
        sizes: how many.
        domain: name of the domain, part of the key of every random choice.
        cameras: number of cameras, 2 or more.
        seed: of the data set.

    Raises:
        ValueError: with less than two cameras.
    """
    if cameras < 2:
        raise ValueError(f"re-identification needs 2 cameras or more, got {cameras}")
    shots: list[Shot] = []
    first = 1
    for identity in range(first, first + sizes.train_people):
        for camera, dice in _seen_by(identity, sizes, domain, cameras, seed):
            shots += [
                Shot("train", identity, camera, shot, False)
                for shot in range(_count(sizes.train_shots, dice))
            ]
    first += sizes.train_people
    shots += _strangers("train", range(first, first + sizes.train_strangers), domain, cameras, seed)
    first += sizes.train_strangers
    for identity in range(first, first + sizes.test_people):
        for camera, dice in _seen_by(identity, sizes, domain, cameras, seed):
            shots.append(Shot("query", identity, camera, 0, False))
            shots += [
                Shot("gallery", identity, camera, shot, False)
                for shot in range(1, 1 + _count(sizes.gallery_shots, dice))
            ]
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
