"""Shapes of a body in its own units, drawn together with their mask."""

import math
from collections.abc import Callable
from itertools import pairwise

from PIL import Image, ImageDraw

from .patterns import cloth
from .wardrobe import Colour, Garment

Point = tuple[float, float]
Paint = Colour | Image.Image
_Shape = Callable[[ImageDraw.ImageDraw, Colour | int], None]


class Canvas:
    """Shapes in figure units: x = 0 is the body's axis, y = 0 the crown and y = 1 the soles.

    Args:
        size: (width, height) in pixels.
        centre: x of the body's axis, in pixels.
        top: y of the crown, in pixels.
        unit: pixels from crown to soles.

    Attributes:
        image: what was drawn (RGB), black elsewhere.
        mask: where something was drawn (L, 0 or 255).
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
            self._cloths[garment] = cloth(
                garment, size=self.size, centre=self.centre, top=self.top, unit=self.unit
            )
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
