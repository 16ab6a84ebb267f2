"""The people of a domain: how they dress, and how one is drawn, walking, from some side."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from .dice import Dice

Colour = tuple[int, int, int]
PALETTE: dict[str, Colour] = {
    "white": (236, 236, 232), "grey": (138, 140, 142), "charcoal": (66, 68, 74), "black": (30, 30, 34),
    "red": (196, 36, 40), "maroon": (106, 28, 40), "pink": (230, 140, 168), "orange": (232, 126, 36),
    "yellow": (236, 204, 62), "mustard": (178, 138, 46), "beige": (206, 186, 150), "brown": (104, 72, 48),
    "lime": (148, 200, 66), "green": (46, 134, 68), "olive": (96, 98, 54), "teal": (32, 128, 130),
    "sky": (122, 178, 224), "blue": (42, 84, 184), "navy": (32, 42, 88), "denim": (80, 106, 146),
    "lilac": (176, 148, 208), "purple": (104, 54, 132),
}  # fmt: skip
SKIN: dict[str, Colour] = {
    "a": (244, 212, 188), "b": (226, 180, 146), "c": (188, 138, 102), "d": (138, 94, 66), "e": (86, 58, 42),
}  # fmt: skip
HAIR: dict[str, Colour] = {
    "black": (26, 22, 22), "brown": (74, 48, 32), "blond": (202, 166, 98), "red": (150, 70, 36),
    "grey": (162, 162, 162),
}  # fmt: skip
LONG_SLEEVES = ("shirt", "jacket", "coat", "hoodie", "vest")
BARE_LEGS = ("shorts", "skirt", "dress")


@dataclass(frozen=True)
class Garment:
    """One piece of clothing: kind, two colours, a pattern and its period (share of the figure's height)."""

    kind: str
    colour: Colour
    second: Colour
    pattern: str
    period: float


@dataclass(frozen=True)
class Person:
    """All that stays the same from image to image of one identity.

    Attributes:
        height: figure height relative to the domain's average, about 0.88-1.08.
        build: width relative to the average, about 0.8-1.25.
        bag_side: +1 when the bag hangs on the person's left, -1 on the right.
    """

    height: float
    build: float
    skin: Colour
    hair: Colour
    hair_style: str
    hat: str
    hat_colour: Colour
    upper: Garment
    lower: Garment
    shoes: Colour
    boots: bool
    bag: str
    bag_colour: Colour
    bag_side: int


@dataclass(frozen=True)
class Wardrobe:
    """How a domain's people dress: weights of each kind, pattern and colour; they need not sum to 1."""

    upper_kinds: dict[str, float]
    lower_kinds: dict[str, float]
    patterns: dict[str, float]
    upper_colours: dict[str, float]
    lower_colours: dict[str, float]
    hats: dict[str, float]
    bags: dict[str, float]
    hair_styles: dict[str, float] = field(
        default_factory=lambda: {"bald": 0.5, "short": 4, "medium": 2, "long": 2, "bun": 1, "tail": 1}
    )
    lower_patterned: float = 0.15
    boots: float = 0.1
    colour_jitter: float = 12.0


def _tint(name: str, spread: float, dice: Dice) -> Colour:
    return tuple(min(255, max(0, round(value + dice.uniform(-spread, spread)))) for value in PALETTE[name])


def _garment(kind: str, colours: dict[str, float], pattern: str, spread: float, dice: Dice) -> Garment:
    first = dice.choice(colours)
    # From the whole palette, so that the stripes of a domain also hold colours that are rare in it.
    second = dice.choice({name: 1.0 for name in PALETTE if name != first})
    return Garment(
        kind, _tint(first, spread, dice), _tint(second, spread, dice), pattern, dice.uniform(0.035, 0.085)
    )


def draw_person(wardrobe: Wardrobe, dice: Dice) -> Person:
    """Draw the attributes of one person from a domain's habits; a function of the dice alone."""
    spread = wardrobe.colour_jitter
    upper_kind = dice.choice(wardrobe.upper_kinds)
    upper = _garment(upper_kind, wardrobe.upper_colours, dice.choice(wardrobe.patterns), spread, dice)
    lower_pattern = "plain"
    if dice.chance(wardrobe.lower_patterned):
        lower_pattern = dice.choice({"seam": 1, "checks": 0.5, "bands": 0.5})
    lower = _garment(dice.choice(wardrobe.lower_kinds), wardrobe.lower_colours, lower_pattern, spread, dice)
    every = dict.fromkeys(PALETTE, 1.0)
    shoes = {"white": 2, "black": 3, "brown": 1.5, "red": 0.7, "blue": 0.7, "grey": 1}
    return Person(
        height=dice.uniform(0.88, 1.08),
        build=dice.uniform(0.8, 1.25),
        skin=SKIN[dice.choice(dict.fromkeys(SKIN, 1.0))],
        hair=HAIR[dice.choice({"black": 3, "brown": 3, "blond": 2, "red": 1, "grey": 1})],
        hair_style=dice.choice(wardrobe.hair_styles),
        hat=dice.choice(wardrobe.hats),
        hat_colour=_tint(dice.choice(every), spread, dice),
        upper=upper,
        lower=lower,
        shoes=_tint(dice.choice(shoes), spread, dice),
        boots=dice.chance(wardrobe.boots),
        bag=dice.choice(wardrobe.bags),
        bag_colour=_tint(dice.choice(every), spread, dice),
        bag_side=1 if dice.chance(0.5) else -1,
    )


#: where the second colour of a garment shows, by x from the axis, y from the crown and the period, in heights
_SECOND_COLOUR: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "bands": lambda x, y, period: (y / period) % 1 < 0.45,
    "pinstripes": lambda x, y, period: (x / (0.6 * period)) % 1 < 0.35,
    "checks": lambda x, y, period: ((x / period) % 1 < 0.5) ^ ((y / period) % 1 < 0.5),
    "dots": lambda x, y, period: ((x / period) % 1 - 0.5) ** 2 + ((y / period) % 1 - 0.5) ** 2 < 0.09,
    "block": lambda x, y, period: y > 0.2 + 2 * period,
    "seam": lambda x, y, period: x > 0.075,
}
#: "logo" is drawn on the chest by the figure instead
PATTERNS = ("plain", *_SECOND_COLOUR, "logo")


def cloth(garment: Garment, *, size: tuple[int, int], centre: float, top: float, unit: float) -> Image.Image:
    """A canvas full of a garment's cloth, to be pasted through the mask of the garment.

    Args:
        garment: colours, pattern and period.
        size: (width, height) of the canvas in pixels.
        centre: x of the axis in pixels; patterns are symmetric about it, so they move with the figure.
        top: y of the figure's crown in pixels.
        unit: pixels per figure height.
    """
    if garment.pattern not in PATTERNS:
        raise ValueError(
            f"pattern {garment.pattern!r} is not one of {PATTERNS}: choose one of them or draw it here"
        )
    canvas = Image.new("RGB", size, garment.colour)
    if garment.pattern in _SECOND_COLOUR:
        x = np.abs(np.arange(size[0]) + 0.5 - centre)[None, :] / unit
        y = (np.arange(size[1]) + 0.5 - top)[:, None] / unit
        mask = np.broadcast_to(_SECOND_COLOUR[garment.pattern](x, y, garment.period), size[::-1])
        canvas.paste(garment.second, mask=Image.fromarray(mask.astype(np.uint8) * 255))
    return canvas


Point = tuple[float, float]
Paint = Colour | Image.Image
_Shape = Callable[[ImageDraw.ImageDraw, Colour | int], None]


class Canvas:
    """Shapes in figure units: x = 0 is the body's axis, y = 0 the crown and y = 1 the soles.

    ``image`` (RGB) is what was drawn, ``mask`` (L, 0 or 255) where. The arguments are those of :func:`cloth`.
    """

    def __init__(self, size: tuple[int, int], *, centre: float, top: float, unit: float) -> None:
        self.size, self.centre, self.top, self.unit = size, centre, top, unit
        self.image = Image.new("RGB", size)
        self.mask = Image.new("L", size)
        self._cloths: dict[Garment, Paint] = {}

    def cloth(self, garment: Garment) -> Paint:
        """The paint of a garment: its colour, or a canvas full of its pattern."""
        if garment.pattern in ("plain", "logo"):
            return garment.colour
        if garment not in self._cloths:
            place = {"centre": self.centre, "top": self.top, "unit": self.unit}
            self._cloths[garment] = cloth(garment, size=self.size, **place)
        return self._cloths[garment]

    def polygon(self, points: list[Point], paint: Paint) -> None:
        """A filled polygon."""
        pixels = [self._pixel(point) for point in points]
        self._draw(paint, lambda draw, fill: draw.polygon(pixels, fill=fill))

    def box(
        self, middle: float, half: float, top: float, bottom: float, paint: Paint, slope: float = 1.0
    ) -> None:
        """A trapezium about x = ``middle``, of half width ``half`` above and ``slope * half`` below."""
        low = half * slope
        corners = [(middle - half, top), (middle + half, top), (middle + low, bottom), (middle - low, bottom)]
        self.polygon(corners, paint)

    def ellipse(self, middle: Point, radius: Point, paint: Paint) -> None:
        """A filled ellipse with upright axes."""
        (x, y), rx, ry = self._pixel(middle), radius[0] * self.unit, radius[1] * self.unit
        self._draw(paint, lambda draw, fill: draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill))

    def limb(self, points: list[Point], radii: list[float], paint: Paint) -> None:
        """A chain of tapering rods with round joints, one radius for each point."""
        joints = [
            (*self._pixel(point), radius * self.unit) for point, radius in zip(points, radii, strict=True)
        ]

        def rods(draw: ImageDraw.ImageDraw, fill: Colour | int) -> None:
            for (ax, ay, ar), (bx, by, br) in pairwise(joints):
                length = math.hypot(bx - ax, by - ay) or 1.0
                nx, ny = (ay - by) / length, (bx - ax) / length
                corners = [(ax + nx * ar, ay + ny * ar), (bx + nx * br, by + ny * br)]
                corners += [(bx - nx * br, by - ny * br), (ax - nx * ar, ay - ny * ar)]
                draw.polygon(corners, fill=fill)
            for x, y, r in joints:
                draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

        self._draw(paint, rods)

    def _pixel(self, point: Point) -> Point:
        return (self.centre + point[0] * self.unit, self.top + point[1] * self.unit)

    def _draw(self, paint: Paint, shape: _Shape) -> None:
        shape(ImageDraw.Draw(self.mask), 255)
        if isinstance(paint, Image.Image):
            stencil = Image.new("L", self.size)
            shape(ImageDraw.Draw(stencil), 255)
            self.image.paste(paint, mask=stencil)
        else:
            shape(ImageDraw.Draw(self.image), paint)


_EYES: Colour = (40, 32, 32)
_HANDLE: Colour = (60, 60, 60)


@dataclass(frozen=True)
class View:
    """How a person is seen in one image.

    Attributes:
        facing: direction in degrees: 0 walks towards the camera, 90 to the right, 180 away from it.
        phase: gait phase in radians.
        swing: length of the stride relative to the average.
    """

    facing: float
    phase: float
    swing: float


def draw_figure(
    person: Person, view: View, *, size: tuple[int, int], centre: float, top: float, unit: float
) -> tuple[Image.Image, Image.Image]:
    """Draw a person: the figure (RGB) and its mask (L, 0 or 255), of this size and without anti-aliasing.

    Place and scale, in pixels, are as for :func:`cloth`.
    """
    canvas = Canvas(size, centre=centre, top=top, unit=unit)
    body = _Body(person, view, canvas)
    near = 1 if body.turn >= 0 else -1
    if body.front > 0:
        body.backpack()
        body.hair_behind()
    body.arm(-near)
    body.leg(-near)
    body.leg(near)
    body.hips()
    body.torso()
    if body.front <= 0:
        body.backpack()
    body.head()
    body.arm(near)
    body.carried()
    return canvas.image, canvas.mask


def _darker(colour: Colour, share: float) -> Colour:
    return tuple(int(share * value) for value in colour)


class _Body:
    """One person in one view: measures, and the parts drawn from them; distances are shares of the height.

    ``front`` is 1 face to face and -1 from behind, ``turn`` 1 when walking to the right of the image,
    ``frontal`` 1 in both and 0 in profile. A ``side`` is +1 for what is on the right of the image.
    """

    def __init__(self, person: Person, view: View, canvas: Canvas) -> None:
        self.person, self.canvas = person, canvas
        angle = math.radians(view.facing)
        self.front, self.turn = math.cos(angle), math.sin(angle)
        self.frontal = abs(self.front)
        self.shoulder = (0.112 * self.frontal + 0.07 * (1 - self.frontal)) * person.build
        self.hip = (0.086 * self.frontal + 0.068 * (1 - self.frontal)) * person.build
        self.stride = math.sin(view.phase) * view.swing
        self.girth = 0.6 + 0.4 * person.build

    def leg(self, side: int) -> None:
        person, lower, stride, canvas = self.person, self.person.lower, side * self.stride, self.canvas
        lift = max(0.0, stride) * 0.03 * self.frontal
        hip_x = side * 0.04 * self.frontal * person.build
        ankle_x = side * 0.045 * self.frontal * person.build + stride * 0.13 * self.turn
        knee_x = (hip_x + ankle_x) / 2 + 0.02 * self.turn
        hip, knee, ankle = (hip_x, 0.51), (knee_x, 0.74), (ankle_x, 0.95 - lift)
        toe = (ankle_x + 0.035 * self.turn, 0.975 - lift)
        canvas.ellipse(toe, (0.032 + 0.018 * abs(self.turn), 0.022), person.shoes)
        bare = lower.kind in BARE_LEGS or person.upper.kind == "dress"
        wide = {"wide": 1.3, "leggings": 0.82}.get(lower.kind, 1.0) * self.girth
        thin = 0.8 if bare else 1.0
        paint = person.skin if bare else canvas.cloth(lower)
        canvas.limb([hip, knee, ankle], [0.05 * wide, 0.04 * wide * thin, 0.03 * wide * thin], paint)
        if person.boots:
            shin = ((knee_x + ankle_x) / 2, 0.85)
            canvas.limb([shin, ankle], [0.036 * self.girth, 0.034 * self.girth], person.shoes)
        if lower.kind == "shorts" and person.upper.kind != "dress":
            end = (hip_x + (knee_x - hip_x) * 0.85, 0.705)
            canvas.limb([hip, end], [0.055 * wide, 0.052 * wide], canvas.cloth(lower))

    def hips(self) -> None:
        if self.person.upper.kind == "dress":
            return
        lower = self.person.lower
        paint = self.canvas.cloth(lower)
        self.canvas.box(0, self.hip, 0.46, 0.54, paint, slope=1.05)
        if lower.kind == "skirt":
            self.canvas.box(0, self.hip, 0.46, 0.70, paint, slope=1.45)
        if lower.kind == "long skirt":
            self.canvas.box(0, self.hip, 0.46, 0.90, paint, slope=1.5)

    def torso(self) -> None:
        person, upper, canvas, s, h = self.person, self.person.upper, self.canvas, self.shoulder, self.hip
        canvas.limb([(0, 0.12), (0, 0.18)], [0.028, 0.032], person.skin)
        hems = {"coat": (0.70, 1.3), "dress": (0.69, 1.55), "jacket": (0.52, 1.12)}
        hem, flare = hems.get(upper.kind, (0.50, 1.05))
        right = [(0.45 * s, 0.155), (s, 0.185), (0.94 * s, 0.33), (h * 1.02, 0.46), (h * flare, hem)]
        canvas.polygon(right + [(-x, y) for x, y in reversed(right)], canvas.cloth(upper))
        middle = 0.4 * s * self.turn
        if self.front > 0.2:
            if upper.kind == "jacket":
                canvas.box(middle, 0.28 * s, 0.16, hem, upper.second)
            elif upper.kind == "coat":
                canvas.box(middle, 0.006, 0.17, hem, upper.second)
            else:
                canvas.ellipse((middle, 0.155), (0.032, 0.02), person.skin)
            if upper.pattern == "logo":
                canvas.ellipse((middle, 0.28), (0.55 * s, 0.045), upper.second)
        elif upper.pattern == "logo" and self.front < -0.2:
            canvas.box(0, 0.6 * s, 0.22, 0.26, upper.second)
        if upper.kind == "hoodie":
            hood = upper.colour if upper.pattern == "plain" else upper.second
            canvas.ellipse((-0.02 * self.turn, 0.165), (0.066, 0.03), hood)

    def arm(self, side: int) -> None:
        person, upper, canvas, r = self.person, self.person.upper, self.canvas, self.girth
        shoulder, elbow, hand = self._arm_joints(side)
        # A little darker than the torso, or the arm would vanish against it.
        sleeve = _darker(upper.second if upper.kind in ("vest", "raglan") else upper.colour, 0.86)
        if upper.kind in LONG_SLEEVES:
            canvas.ellipse(hand, (0.02, 0.02), person.skin)
            cuff = (elbow[0] + 0.9 * (hand[0] - elbow[0]), elbow[1] + 0.9 * (hand[1] - elbow[1]))
            canvas.limb([shoulder, elbow, cuff], [0.036 * r, 0.032 * r, 0.025 * r], sleeve)
            return
        canvas.limb([shoulder, elbow, hand], [0.028 * r, 0.025 * r, 0.019], person.skin)
        if upper.kind != "tank":
            half = ((shoulder[0] + 2 * elbow[0]) / 3, (shoulder[1] + 2 * elbow[1]) / 3)
            canvas.limb([shoulder, half], [0.037 * r, 0.036 * r], sleeve)

    def _arm_joints(self, side: int) -> tuple[Point, Point, Point]:
        """Shoulder, elbow and hand; an arm swings against the leg of its side."""
        s, swing, spread = self.shoulder, -side * self.stride, side * self.frontal
        elbow_x = spread * (s + 0.02) + 0.06 * swing * self.turn
        hand_x = spread * (s + 0.012) + (0.13 * swing + 0.02) * self.turn
        return (spread * s * 0.95, 0.195), (elbow_x, 0.335), (hand_x, 0.475 - 0.02 * abs(swing))

    def hair_behind(self) -> None:
        ends = {"long": 0.2, "medium": 0.145}
        if self.person.hair_style in ends:
            x, end = -0.02 * self.turn, ends[self.person.hair_style]
            self.canvas.limb([(x, 0.07), (x, end)], [0.057, 0.062], self.person.hair)

    def head(self) -> None:
        self.canvas.ellipse((0.012 * self.turn, 0.076), (0.046, 0.064), self.person.skin)
        if self.front > -0.2:
            for side in (-1, 1):
                eye = (0.022 * self.turn + side * 0.018 * self.frontal, 0.074)
                self.canvas.ellipse(eye, (0.006, 0.005), _EYES)
        if self.person.hair_style != "bald":
            self._hair()
        self._hat()

    def _hair(self) -> None:
        style, hair, turn, canvas = self.person.hair_style, self.person.hair, self.turn, self.canvas
        canvas.ellipse((-0.01 * turn, 0.042), (0.05, 0.042), hair)
        if self.front < 0.2:
            x, end = -0.014 * turn, {"medium": 0.12, "long": 0.21}.get(style, 0.07)
            canvas.limb([(x, 0.055), (x, end)], [0.048, 0.045], hair)
            if style == "tail":
                canvas.limb([(x, 0.08), (-0.05 * turn, 0.22)], [0.02, 0.012], hair)
        elif self.front < 0.7:
            canvas.ellipse((-0.024 * turn, 0.07), (0.032, 0.05), hair)
        if style == "bun":
            canvas.ellipse((-0.045 * turn, 0.012), (0.024, 0.024), hair)

    def _hat(self) -> None:
        hat, colour, canvas = self.person.hat, self.person.hat_colour, self.canvas
        if hat == "beanie":
            canvas.ellipse((0, 0.034), (0.054, 0.046), colour)
            canvas.box(0, 0.053, 0.034, 0.06, colour, slope=0.96)
        elif hat == "cap":
            canvas.ellipse((0, 0.034), (0.05, 0.038), colour)
            if self.front > -0.3:
                canvas.ellipse((0.045 * self.turn, 0.054), (0.046, 0.01), _darker(colour, 0.5))
        elif hat == "brim":
            canvas.ellipse((0, 0.03), (0.044, 0.04), colour)
            canvas.ellipse((0, 0.05), (0.09, 0.014), colour)

    def backpack(self) -> None:
        if self.person.bag != "backpack":
            return
        colour, x = self.person.bag_colour, -0.075 * self.turn
        # From the front only what reaches past the shoulders shows.
        half = (1.05 if self.front > 0 else 0.8) * self.shoulder * self.frontal + 0.05 * (1 - self.frontal)
        self.canvas.limb([(x - half * 0.4, 0.24), (x + half * 0.4, 0.24)], [0.05, 0.05], colour)
        self.canvas.box(x, half, 0.22, 0.42, colour)
        if self.front < 0:
            self.canvas.box(x, half * 0.7, 0.33, 0.40, _darker(colour, 0.7))

    def carried(self) -> None:
        bag, colour, s, canvas = self.person.bag, self.person.bag_colour, self.shoulder, self.canvas
        # The person's left is on the image's right when they walk towards the camera.
        side = self.person.bag_side * (1 if self.front > 0 else -1)
        x = side * (s + 0.02) * self.frontal - 0.03 * self.turn
        if bag == "backpack" and self.front > 0.3:
            for strap in (-0.6 * s, 0.6 * s):
                canvas.limb([(strap, 0.165), (strap * 1.1, 0.36)], [0.011, 0.011], colour)
        elif bag == "shoulder":
            canvas.limb([(-side * 0.7 * s, 0.165), (x, 0.44)], [0.009, 0.009], colour)
            canvas.box(x, 0.05, 0.42, 0.53, colour, slope=1.1)
        elif bag == "hand":
            _, _, (hand_x, hand_y) = self._arm_joints(side)
            canvas.box(hand_x, 0.045, hand_y + 0.02, hand_y + 0.13, colour, slope=1.2)
        elif bag == "suitcase":
            x = x * 1.1 - 0.1 * self.turn
            canvas.box(x, 0.06, 0.68, 0.97, colour)
            canvas.limb([(x, 0.52), (x, 0.68)], [0.006, 0.006], _HANDLE)
