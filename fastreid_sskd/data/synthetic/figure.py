"""Drawing one person: a walking, dressed figure of polygons seen from some side."""

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .patterns import cloth
from .wardrobe import BARE_LEGS, LONG_SLEEVES, Colour, Garment, Person

Point = tuple[float, float]
Paint = Colour | Image.Image


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


class _Canvas:
    """Shapes in figure units: x = 0 is the body's axis, y = 0 the crown and y = 1 the soles."""

    def __init__(self, size: tuple[int, int], centre: float, top: float, unit: float) -> None:
        self.size, self.centre, self.top, self.unit = size, centre, top, unit
        self.image = Image.new("RGB", size)
        self.alpha = Image.new("L", size)

    def cloth(self, garment: Garment) -> Paint:
        if garment.pattern in ("plain", "logo"):
            return garment.colour
        return cloth(garment, size=self.size, centre=self.centre, top=self.top, unit=self.unit)

    def polygon(self, points: list[Point], paint: Paint, mirror: int = 1) -> None:
        pixels = [self._pixel((mirror * x, y)) for x, y in points]
        self._draw(paint, lambda draw, fill: draw.polygon(pixels, fill=fill))

    def ellipse(self, middle: Point, radius: Point, paint: Paint) -> None:
        (x, y), (rx, ry) = self._pixel(middle), (radius[0] * self.unit, radius[1] * self.unit)
        box = (x - rx, y - ry, x + rx, y + ry)
        self._draw(paint, lambda draw, fill: draw.ellipse(box, fill=fill))

    def limb(self, points: list[Point], radii: list[float], paint: Paint) -> None:
        """A chain of tapering rods with round joints."""
        pixels = [self._pixel(point) for point in points]
        widths = [radius * self.unit for radius in radii]

        def rods(draw: ImageDraw.ImageDraw, fill: Colour | int) -> None:
            for (a, r), (b, s) in zip(zip(pixels, widths), zip(pixels[1:], widths[1:])):
                length = math.hypot(b[0] - a[0], b[1] - a[1]) or 1.0
                nx, ny = (a[1] - b[1]) / length, (b[0] - a[0]) / length
                corners = [(a[0] + nx * r, a[1] + ny * r), (b[0] + nx * s, b[1] + ny * s)]
                corners += [(b[0] - nx * s, b[1] - ny * s), (a[0] - nx * r, a[1] - ny * r)]
                draw.polygon(corners, fill=fill)
            for (x, y), r in zip(pixels, widths):
                draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

        self._draw(paint, rods)

    def _pixel(self, point: Point) -> Point:
        return (self.centre + point[0] * self.unit, self.top + point[1] * self.unit)

    def _draw(self, paint: Paint, shape) -> None:
        shape(ImageDraw.Draw(self.alpha), 255)
        if isinstance(paint, Image.Image):
            mask = Image.new("L", self.size)
            shape(ImageDraw.Draw(mask), 255)
            self.image.paste(paint, mask=mask)
        else:
            shape(ImageDraw.Draw(self.image), paint)


def draw_figure(
    person: Person, view: View, *, size: tuple[int, int], centre: float, top: float, unit: float
) -> tuple[Image.Image, Image.Image]:
    """Draw a person.

    Args:
        person: what stays the same between images.
        view: what differs between images.
        size: (width, height) of the canvas in pixels.
        centre: x of the body's axis, in pixels.
        top: y of the crown, in pixels.
        unit: pixels from crown to soles.

    Returns:
        The figure (RGB) and its mask (L, 0 or 255), both of the canvas' size and without anti-aliasing.
    """
    canvas = _Canvas(size, centre, top, unit)
    body = _Body(person, view)
    front = body.front > 0
    near = 1 if body.turn >= 0 else -1
    if person.bag == "backpack" and front:
        body.backpack(canvas)
    if front:
        body.hair_behind(canvas)
    body.arm(canvas, -near)
    body.leg(canvas, -near)
    body.leg(canvas, near)
    body.hips(canvas)
    body.torso(canvas)
    if person.bag == "backpack" and not front:
        body.backpack(canvas)
    body.head(canvas)
    body.arm(canvas, near)
    body.carried(canvas)
    return canvas.image, canvas.alpha


class _Body:
    """The measures of one person in one view, and the parts drawn from them; distances are shares of the height."""

    def __init__(self, person: Person, view: View) -> None:
        self.person = person
        angle = math.radians(view.facing)
        self.front, self.turn = math.cos(angle), math.sin(angle)
        frontal = abs(self.front)
        self.shoulder = (0.112 * frontal + 0.07 * (1 - frontal)) * person.build
        self.hip = (0.086 * frontal + 0.068 * (1 - frontal)) * person.build
        self.stride = math.sin(view.phase) * view.swing
        self.frontal = frontal
        self.girth = 0.6 + 0.4 * person.build

    def leg(self, canvas: _Canvas, side: int) -> None:
        person, lower, stride = self.person, self.person.lower, side * self.stride
        lift = max(0.0, stride) * 0.03 * self.frontal
        ankle_x = side * 0.045 * self.frontal * person.build + stride * 0.13 * self.turn
        hip_x = side * 0.04 * self.frontal * person.build
        knee_x = (hip_x + ankle_x) / 2 + 0.02 * self.turn
        hip, knee, ankle = (hip_x, 0.51), (knee_x, 0.74), (ankle_x, 0.95 - lift)
        toe = (ankle_x + 0.035 * self.turn, 0.975 - lift)
        canvas.ellipse(toe, (0.032 + 0.018 * abs(self.turn), 0.022), person.shoes)
        bare = lower.kind in BARE_LEGS or person.upper.kind == "dress"
        wide = {"wide": 1.3, "leggings": 0.82}.get(lower.kind, 1.0) * self.girth
        paint = person.skin if bare else canvas.cloth(lower)
        thin = 0.8 if bare else 1.0
        canvas.limb([hip, knee, ankle], [0.05 * wide, 0.04 * wide * thin, 0.03 * wide * thin], paint)
        if person.boots:
            canvas.limb([((knee_x + ankle_x) / 2, 0.85), ankle], [0.036 * self.girth, 0.034 * self.girth], person.shoes)
        if lower.kind == "shorts" and person.upper.kind != "dress":
            end = (hip_x + (knee_x - hip_x) * 0.85, 0.705)
            canvas.limb([hip, end], [0.055 * wide, 0.052 * wide], canvas.cloth(lower))

    def hips(self, canvas: _Canvas) -> None:
        lower, h = self.person.lower, self.hip
        if self.person.upper.kind == "dress":
            return
        canvas.polygon([(-h, 0.46), (h, 0.46), (h * 1.05, 0.54), (-h * 1.05, 0.54)], canvas.cloth(lower))
        if lower.kind == "skirt":
            canvas.polygon([(-h, 0.46), (h, 0.46), (h * 1.45, 0.70), (-h * 1.45, 0.70)], canvas.cloth(lower))
        if lower.kind == "long skirt":
            canvas.polygon([(-h, 0.46), (h, 0.46), (h * 1.5, 0.90), (-h * 1.5, 0.90)], canvas.cloth(lower))

    def torso(self, canvas: _Canvas) -> None:
        person, upper = self.person, self.person.upper
        paint = canvas.cloth(upper)
        s, h = self.shoulder, self.hip
        canvas.limb([(0, 0.12), (0, 0.18)], [0.028, 0.032], person.skin)
        hem, flare = {"coat": (0.70, 1.3), "dress": (0.69, 1.55), "jacket": (0.52, 1.12)}.get(upper.kind, (0.50, 1.05))
        outline = [(-0.45 * s, 0.155), (0.45 * s, 0.155), (s, 0.185), (0.94 * s, 0.33), (h * 1.02, 0.46)]
        outline += [(h * flare, hem), (-h * flare, hem), (-h * 1.02, 0.46), (-0.94 * s, 0.33), (-s, 0.185)]
        canvas.polygon(outline, paint)
        middle = 0.4 * s * self.turn
        if self.front > 0.2:
            if upper.kind == "jacket":
                half = 0.28 * s
                canvas.polygon([(middle - half, 0.16), (middle + half, 0.16), (middle + half, hem), (middle - half, hem)], upper.second)
            elif upper.kind == "coat":
                canvas.polygon([(middle - 0.006, 0.17), (middle + 0.006, 0.17), (middle + 0.006, hem), (middle - 0.006, hem)], upper.second)
            else:
                canvas.ellipse((middle, 0.155), (0.032, 0.02), person.skin)
            if upper.pattern == "logo":
                canvas.ellipse((middle, 0.28), (0.55 * s, 0.045), upper.second)
        elif upper.pattern == "logo" and self.front < -0.2:
            canvas.polygon([(-0.6 * s, 0.22), (0.6 * s, 0.22), (0.6 * s, 0.26), (-0.6 * s, 0.26)], upper.second)
        if upper.kind == "hoodie":
            canvas.ellipse((-0.02 * self.turn, 0.165), (0.066, 0.03), upper.second if upper.pattern != "plain" else upper.colour)

    def _hand(self, side: int) -> tuple[Point, Point, Point]:
        s, swing = self.shoulder, -side * self.stride
        spread = side * self.frontal
        shoulder = (spread * s * 0.95, 0.195)
        elbow = (spread * (s + 0.02) + 0.06 * swing * self.turn, 0.335)
        hand = (spread * (s + 0.012) + 0.13 * swing * self.turn + 0.02 * self.turn, 0.475 - 0.02 * abs(swing))
        return shoulder, elbow, hand

    def arm(self, canvas: _Canvas, side: int) -> None:
        person, upper = self.person, self.person.upper
        shoulder, elbow, hand = self._hand(side)
        sleeve = upper.second if upper.kind in ("vest", "raglan") else upper.colour
        # A little darker than the torso, or the arm would vanish against it.
        shade = tuple(int(0.86 * value) for value in sleeve)
        r = self.girth
        if upper.kind in LONG_SLEEVES:
            canvas.limb([hand, hand], [0.02, 0.02], person.skin)
            reach = (elbow[0] + 0.9 * (hand[0] - elbow[0]), elbow[1] + 0.9 * (hand[1] - elbow[1]))
            canvas.limb([shoulder, elbow, reach], [0.036 * r, 0.032 * r, 0.025 * r], shade)
        else:
            canvas.limb([shoulder, elbow, hand], [0.028 * r, 0.025 * r, 0.019], person.skin)
            if upper.kind != "tank":
                half = ((shoulder[0] + 2 * elbow[0]) / 3, (shoulder[1] + 2 * elbow[1]) / 3)
                canvas.limb([shoulder, half], [0.037 * r, 0.036 * r], shade)

    def hair_behind(self, canvas: _Canvas) -> None:
        if self.person.hair_style in ("long", "medium"):
            end = 0.2 if self.person.hair_style == "long" else 0.145
            x = -0.02 * self.turn
            canvas.limb([(x, 0.07), (x, end)], [0.057, 0.062], self.person.hair)

    def head(self, canvas: _Canvas) -> None:
        person, turn = self.person, self.turn
        canvas.ellipse((0.012 * turn, 0.076), (0.046, 0.064), person.skin)
        if self.front > -0.2:
            eyes = 0.022 * turn
            for side in (-1, 1):
                canvas.ellipse((eyes + side * 0.018 * self.frontal, 0.074), (0.006, 0.005), (40, 32, 32))
        self._hair(canvas)
        self._hat(canvas)

    def _hair(self, canvas: _Canvas) -> None:
        person, turn, hair = self.person, self.turn, self.person.hair
        if person.hair_style == "bald":
            return
        canvas.ellipse((-0.01 * turn, 0.042), (0.05, 0.042), hair)
        if self.front < 0.2:
            x = -0.014 * turn
            end = {"short": 0.088, "medium": 0.14, "long": 0.23, "tail": 0.09, "bun": 0.09}[person.hair_style]
            canvas.limb([(x, 0.055), (x, end - 0.02)], [0.048, 0.045], hair)
            if person.hair_style == "tail":
                canvas.limb([(x, 0.08), (-0.05 * turn, 0.22)], [0.02, 0.012], hair)
        elif self.front < 0.7:
            canvas.ellipse((-0.024 * turn, 0.07), (0.032, 0.05), hair)
        if person.hair_style == "bun":
            canvas.ellipse((-0.045 * turn, 0.012), (0.024, 0.024), hair)

    def _hat(self, canvas: _Canvas) -> None:
        person, turn, colour = self.person, self.turn, self.person.hat_colour
        if person.hat == "beanie":
            canvas.ellipse((0, 0.034), (0.054, 0.046), colour)
            canvas.polygon([(-0.053, 0.034), (0.053, 0.034), (0.051, 0.06), (-0.051, 0.06)], colour)
        elif person.hat == "cap":
            canvas.ellipse((0, 0.034), (0.05, 0.038), colour)
            if self.front > -0.3:
                canvas.ellipse((0.045 * turn, 0.054), (0.046, 0.01), tuple(value // 2 for value in colour))
        elif person.hat == "brim":
            canvas.ellipse((0, 0.03), (0.044, 0.04), colour)
            canvas.ellipse((0, 0.05), (0.09, 0.014), colour)

    def backpack(self, canvas: _Canvas) -> None:
        colour, s = self.person.bag_colour, self.shoulder
        x = -0.075 * self.turn
        half = (0.8 if self.front < 0 else 1.05) * s * self.frontal + 0.05 * (1 - self.frontal)
        canvas.limb([(x - half * 0.4, 0.24), (x + half * 0.4, 0.24)], [0.05, 0.05], colour)
        canvas.polygon([(x - half, 0.22), (x + half, 0.22), (x + half, 0.42), (x - half, 0.42)], colour)
        pocket = tuple(int(0.7 * value) for value in colour)
        if self.front < 0:
            canvas.polygon([(x - half * 0.7, 0.33), (x + half * 0.7, 0.33), (x + half * 0.7, 0.40), (x - half * 0.7, 0.40)], pocket)

    def carried(self, canvas: _Canvas) -> None:
        person, colour, s = self.person, self.person.bag_colour, self.shoulder
        # The person's left is on the image's right when they walk towards the camera.
        side = person.bag_side * (1 if self.front > 0 else -1)
        x = side * (s + 0.02) * self.frontal - 0.03 * self.turn
        if person.bag == "backpack" and self.front > 0.3:
            for strap in (-0.6 * s, 0.6 * s):
                canvas.limb([(strap, 0.165), (strap * 1.1, 0.36)], [0.011, 0.011], colour)
        elif person.bag == "shoulder":
            canvas.limb([(-side * 0.7 * s, 0.165), (x, 0.44)], [0.009, 0.009], colour)
            canvas.polygon([(x - 0.05, 0.42), (x + 0.05, 0.42), (x + 0.055, 0.53), (x - 0.055, 0.53)], colour)
        elif person.bag == "hand":
            _, _, (hx, hy) = self._hand(1 if side > 0 else -1)
            canvas.polygon([(hx - 0.045, hy + 0.02), (hx + 0.045, hy + 0.02), (hx + 0.055, hy + 0.13), (hx - 0.055, hy + 0.13)], colour)
        elif person.bag == "suitcase":
            cx = x * 1.1 - 0.1 * self.turn
            canvas.polygon([(cx - 0.06, 0.68), (cx + 0.06, 0.68), (cx + 0.06, 0.97), (cx - 0.06, 0.97)], colour)
            canvas.limb([(cx, 0.52), (cx, 0.68)], [0.006, 0.006], (60, 60, 60))
