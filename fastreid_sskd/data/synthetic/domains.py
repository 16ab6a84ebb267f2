"""The two worlds of the synthetic data, and the one function that draws an image of them.

The source is a summer campus in daylight: bright, mostly plain clothes and four cameras that nearly agree.
The target is a town in winter: coats, trousers, muted colours, hats and checks, and five cameras that
disagree about the light.
"""

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .dice import Dice
from .people import Person, View, Wardrobe, draw_figure, draw_person
from .scenes import Camera, expose, paint_scene


@dataclass(frozen=True)
class Domain:
    """A set of cameras and the people who pass them."""

    name: str
    wardrobe: Wardrobe
    cameras: tuple[Camera, ...]


SOURCE = Domain(
    name="source",
    wardrobe=Wardrobe(
        upper_kinds={"tshirt": 5, "tank": 1.5, "shirt": 2, "dress": 2, "raglan": 1},
        lower_kinds={"shorts": 3, "skirt": 2, "trousers": 2, "leggings": 1},
        patterns={"plain": 5, "bands": 1.5, "logo": 2, "block": 0.7, "dots": 0.5},
        upper_colours={"white": 2, "red": 2, "yellow": 2, "sky": 2, "lime": 1.5, "pink": 2, "orange": 1.5,
                       "blue": 2, "green": 1.5, "lilac": 1.5, "teal": 1, "black": 1, "grey": 1},
        lower_colours={"denim": 3, "beige": 2, "white": 1.5, "blue": 1.5, "red": 1, "black": 1.5, "green": 1,
                       "pink": 1, "grey": 1, "yellow": 0.7},
        hats={"none": 6, "cap": 1.5, "brim": 1},
        bags={"none": 4, "backpack": 2, "hand": 1, "shoulder": 1},
    ),
    cameras=(
        Camera("plaza", gain=(1.06, 1.04, 1.0), facings={"front": 3, "right": 1, "back": 1, "left": 1}),
        Camera("park", gain=(0.98, 1.02, 0.94), gamma=1.08, shadow=0.25,
               facings={"front": 1, "right": 2, "back": 2, "left": 1}),
        Camera("street", gain=(0.95, 0.98, 1.05), contrast=1.1, blur=(0.2, 0.6)),
        Camera("campus", gain=(1.1, 1.08, 1.04), gamma=0.92, haze=0.04,
               facings={"front": 1, "right": 1, "back": 3, "left": 1}),
    ),
)  # fmt: skip

TARGET = Domain(
    name="target",
    wardrobe=Wardrobe(
        upper_kinds={"coat": 4, "jacket": 3, "hoodie": 2.5, "vest": 1.5, "shirt": 1, "dress": 0.5},
        lower_kinds={"trousers": 5, "wide": 2, "leggings": 1.5, "long skirt": 1.5},
        patterns={"plain": 3, "checks": 1.5, "pinstripes": 1, "block": 1.5, "bands": 1.5, "logo": 1},
        upper_colours={"black": 1, "navy": 1, "maroon": 1.5, "olive": 1.3, "grey": 1.3, "mustard": 1.5,
                       "beige": 1.3, "purple": 1.5, "teal": 1.5, "red": 1, "white": 1, "blue": 1, "green": 1,
                       "orange": 0.7},
        lower_colours={"black": 1.5, "navy": 1, "denim": 1.5, "brown": 1.5, "olive": 1, "grey": 1.5,
                       "beige": 1.5, "maroon": 1, "white": 1},
        hats={"none": 4, "beanie": 3, "brim": 1, "cap": 0.7},
        bags={"none": 3, "backpack": 2, "shoulder": 2, "hand": 1.5, "suitcase": 0.8},
        boots=0.4,
    ),
    cameras=(
        Camera("corridor", gain=(0.95, 1.03, 0.96), saturation=0.9, haze=0.05, noise=5, blur=(0.3, 0.7),
               block=8, zoom=(0.76, 0.88), shift=0.07,
               facings={"front": 3, "right": 1, "back": 2, "left": 1}),
        Camera("shop", gain=(1.12, 1.03, 0.9), contrast=1.06, noise=5, blur=(0.2, 0.6), block=10,
               zoom=(0.8, 0.94), shift=0.07, occlusion=0.1,
               facings={"front": 1, "right": 2, "back": 1, "left": 2}),
        Camera("brick", gain=(0.91, 0.94, 1.01), noise=7, detail=(0.55, 0.8), block=10, zoom=(0.78, 0.92),
               shift=0.07, shadow=0.2),
        Camera("garage", gain=(1.0, 0.96, 0.86), contrast=0.92, saturation=0.92, noise=8, blur=(0.4, 0.8),
               zoom=(0.74, 0.88), shift=0.08, occlusion=0.08,
               facings={"front": 1, "right": 1, "back": 3, "left": 1}),
        Camera("platform", gain=(0.96, 1.0, 1.09), gamma=0.95, haze=0.03, noise=5, detail=(0.6, 0.9),
               block=10, zoom=(0.78, 0.92), shift=0.07,
               facings={"front": 2, "right": 1, "back": 2, "left": 1}),
    ),
)  # fmt: skip

DOMAINS = {domain.name: domain for domain in (SOURCE, TARGET)}

_FACINGS = {"front": 0.0, "right": 90.0, "back": 180.0, "left": 270.0}
_SUPERSAMPLING = 2


def person_of(domain: Domain, *, seed: int, identity: int) -> Person:
    """The person behind an identity: a function of (seed, domain, identity)."""
    return draw_person(domain.wardrobe, Dice(seed, domain.name, "person", identity))


def render(
    domain: Domain, *, seed: int, identity: int, camera: int, shot: int, size: tuple[int, int] = (128, 64)
) -> Image.Image:
    """Draw one image (RGB) of a data set's seed; a function of its arguments alone.

    The images of one person in one camera share a walking direction and a stretch of background, as the
    frames of one passage do.

    Args:
        domain, seed: the world, and the seed of the whole data set.
        identity, shot: numbers >= 0 of the person, and of the image of this person in this camera.
        camera: index into ``domain.cameras``.
        size: (height, width) of the crop in pixels.
    """
    if size[0] < 16 or size[1] < 8:
        raise ValueError(f"a person needs a crop of 16 x 8 pixels or more, got {size[0]} x {size[1]}")
    if not 0 <= camera < len(domain.cameras):
        raise ValueError(
            f"camera must be in 0..{len(domain.cameras) - 1} for the {domain.name}, got {camera}"
        )
    lens = domain.cameras[camera]
    height, width = size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING
    passage = Dice(seed, domain.name, "passage", identity, camera)
    dice = Dice(seed, domain.name, "shot", identity, camera, shot)

    image = _background(domain, seed, camera, height, width, passage, dice)
    person = person_of(domain, seed=seed, identity=identity)
    facing = _FACINGS[passage.choice(lens.facings)] + passage.uniform(-30, 30) + dice.uniform(-12, 12)
    unit = dice.uniform(*lens.zoom) * height * person.height
    centre = width / 2 + dice.uniform(-lens.shift, lens.shift) * width
    soles = height * (1 - dice.uniform(0.02, 0.07))
    view = View(facing, phase=dice.uniform(0, 6.283), swing=dice.uniform(0.6, 1.0))
    _stand(image, person, view, centre, soles, unit, dice)
    if dice.chance(lens.occlusion):
        _occlude(image, domain, seed, dice, soles, unit)
    return expose(image.reduce(_SUPERSAMPLING), lens, dice)


def _stand(
    image: Image.Image, person: Person, view: View, centre: float, soles: float, unit: float, dice: Dice
) -> None:
    """Put a person into the image, with a shadow on the floor and light from one side."""
    figure, mask = draw_figure(person, view, size=image.size, centre=centre, top=soles - unit, unit=unit)
    floor = Image.new("L", image.size)
    ImageDraw.Draw(floor).ellipse(
        (centre - 0.16 * unit, soles - 0.04 * unit, centre + 0.16 * unit, soles + 0.012 * unit), fill=110
    )
    image.paste((0, 0, 0), mask=floor)
    side = dice.uniform(-0.3, 0.3)
    ramp = np.arange(image.size[0]) - centre
    light = 210 + np.clip(ramp * side * 400 / unit, -45, 45)
    row = Image.fromarray(light.round().astype(np.uint8)[None, :])
    shade = row.resize(image.size, Image.Resampling.NEAREST)
    image.paste(ImageChops.multiply(figure, Image.merge("RGB", (shade, shade, shade))), mask=mask)


def _occlude(image: Image.Image, domain: Domain, seed: int, dice: Dice, soles: float, unit: float) -> None:
    """Put something in front: a pole, a low barrier or a passer-by at the edge of the crop."""
    width, height = image.size
    draw = ImageDraw.Draw(image)
    grey = tuple(
        int(value) for value in (dice.uniform(40, 150), dice.uniform(40, 150), dice.uniform(40, 150))
    )
    kind = dice.choice({"pole": 1, "barrier": 1, "person": 1})
    if kind == "pole":
        x, half = dice.uniform(0.15, 0.85) * width, dice.uniform(0.03, 0.08) * width
        draw.rectangle((x - half, 0, x + half, height), fill=grey)
    elif kind == "barrier":
        y = dice.uniform(0.62, 0.8) * height
        draw.rectangle((0, y, width, height), fill=grey)
        draw.rectangle((0, y, width, y + 0.02 * height), fill=tuple(value // 2 for value in grey))
    else:
        other = draw_person(domain.wardrobe, Dice(seed, domain.name, "passer-by", dice.below(1_000_000)))
        centre = (-0.02 if dice.chance(0.5) else 1.02) * width
        view = View(dice.uniform(0, 360), phase=dice.uniform(0, 6.283), swing=1.0)
        _stand(image, other, view, centre, soles + 0.04 * height, unit * dice.uniform(0.95, 1.1), dice)


def _background(
    domain: Domain, seed: int, camera: int, height: int, width: int, passage: Dice, dice: Dice
) -> Image.Image:
    scene = _scene(domain.name, domain.cameras[camera].scene, seed, camera, height, width)
    room = scene.size[0] - width
    x = int(min(room, max(0, room * passage.unit() + width * dice.uniform(-0.3, 0.3))))
    y = dice.below(scene.size[1] - height + 1)
    return scene.crop((x, y, x + width, y + height))


@functools.lru_cache(maxsize=32)
def _scene(domain: str, kind: str, seed: int, camera: int, height: int, width: int) -> Image.Image:
    scene = paint_scene(kind, width=1024, height=288, dice=Dice(seed, domain, "scene", camera))
    wanted = (8 * width, height + height // 8)
    return scene if scene.size == wanted else scene.resize(wanted, Image.Resampling.BICUBIC)
