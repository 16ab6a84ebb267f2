"""One row of the table of speeds."""
from dataclasses import asdict, dataclass, fields

__all__ = ["Row", "row_from_dict"]


@dataclass
class Row:
    """One measurement beside what it is compared with.

    Attributes:
        section: "step", "loader" or "evaluation".
        what: what was measured, with its sizes.
        unit: of the three figures, such as "s/step", "views/s" or "s".
        ours: this package's figure, a median.
        plain: the plain way's figure in the same run; None where there is none.
        floor: the figure that the hardware allows; None where there is none.
        target: the targets and what was reached, as text for the table.
        note: precision, threads, spread: whatever else a reader needs.
        details: further figures for the record, such as every repeat and its parts.
    """

    section: str
    what: str
    unit: str
    ours: float
    plain: float | None = None
    floor: float | None = None
    target: str = ""
    note: str = ""
    details: dict | None = None

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def row_from_dict(values: dict) -> Row:
    """The row of :meth:`Row.as_dict`'s dict; keys of later versions are left out."""
    names = {field.name for field in fields(Row)}
    return Row(**{name: value for name, value in values.items() if name in names})
