"""Drawing one person: a walking, dressed figure seen from some side."""

import math
from dataclasses import dataclass

from PIL import Image

from .canvas import Canvas, Point
from .wardrobe import BARE_LEGS, LONG_SLEEVES, Colour, Person

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
    """Draw a person.

    Args:
        person: what stays the same between images.
        view: what differs between images.
        size, centre, top, unit: place and scale in pixels, see :class:`Canvas`.

    Returns:
        The figure (RGB) and its mask (L, 0 or 255), both of this size and without anti-aliasing.
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
