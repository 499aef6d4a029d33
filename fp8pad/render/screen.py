"""A screen as data: a sequence of blocks, which `terminal.py` and `html.py` lay out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from fp8pad.render.console import growth
from fp8pad.text import size

LAYERS = "layers"  # the style of module names, which have none on a terminal


@dataclass(frozen=True, slots=True)
class Bar:
    """A size in bytes before and after, as bars of which the longest is `longest` bytes; as text on a terminal."""

    before: int
    after: int
    longest: int

    def __str__(self) -> str:
        return growth(self.before, self.after) if self.after != self.before else size(self.before)


Cell = str | Text | Bar
Row = Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A text that is wrapped; all lines but the first are indented by `hang` more columns."""

    text: str | Text
    indent: int = 0
    hang: int = 0


@dataclass(frozen=True, slots=True)
class Section:
    """A blank line and a title."""

    title: str


@dataclass(frozen=True, slots=True)
class Subsection:
    """A title inside a section."""

    title: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command on a line of its own, which is never broken, so that it can be pasted."""

    text: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of cells, the last of which may be wrapped; if rows are too wide, each becomes a paragraph."""

    rows: Sequence[Row]
    header: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise `ValueError` unless all rows, and the header, have the same number of cells."""
        if len({len(row) for row in (*self.rows, *([self.header] if self.header and self.rows else []))}) > 1:
            raise ValueError(f"rows of different lengths below {list(self.header)}")


Block = Paragraph | Section | Subsection | Command | Rows
Screen = Iterable[Block]  # laid out once the width is known; nothing in it is parsed as markup
