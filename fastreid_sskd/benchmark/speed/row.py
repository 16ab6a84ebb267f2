"""One row of the table of speeds."""
from dataclasses import asdict, dataclass

__all__ = ["Row"]


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
