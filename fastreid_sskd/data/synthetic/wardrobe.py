"""Who walks through a domain: the attributes of a synthetic person and a domain's habits of dress."""

from dataclasses import dataclass, field

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
    "a": (244, 212, 188),
    "b": (226, 180, 146),
    "c": (188, 138, 102),
    "d": (138, 94, 66),
    "e": (86, 58, 42),
}
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
    lower_pattern = (
        dice.choice({"seam": 1, "checks": 0.5, "bands": 0.5})
        if dice.chance(wardrobe.lower_patterned)
        else "plain"
    )
    lower = _garment(dice.choice(wardrobe.lower_kinds), wardrobe.lower_colours, lower_pattern, spread, dice)
    every = dict.fromkeys(PALETTE, 1.0)
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
        shoes=_tint(
            dice.choice({"white": 2, "black": 3, "brown": 1.5, "red": 0.7, "blue": 0.7, "grey": 1}),
            spread,
            dice,
        ),
        boots=dice.chance(wardrobe.boots),
        bag=dice.choice(wardrobe.bags),
        bag_colour=_tint(dice.choice(every), spread, dice),
        bag_side=1 if dice.chance(0.5) else -1,
    )
