"""What a section is made of: plain data that the page template turns into HTML.

Every string here is raw text; the template escapes it. Strings that go into a figure pass through
``plotly_text``, because plotly reads a subset of HTML in its labels.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Tone = Literal["", "good", "bad", "warn", "muted", "strong"]
Tag = Literal["", "predicted", "measured", "calibrated", "mixed", "given"]


@dataclass(frozen=True)
class Note:
    """A sentence or two, then ``points`` as a list; a tone of "warn" or "good" puts it in a box."""

    text: str
    tone: Tone = ""
    title: str = ""
    points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One table cell; ``sort`` is the number that a click on the heading sorts by; ``href`` makes a link."""

    text: str
    sort: float | None = None
    tone: Tone = ""
    detail: str = ""
    href: str = ""
    bar_frac: float | None = None


@dataclass(frozen=True)
class Column:
    """A table heading with its unit, and whether its numbers are measured or predicted."""

    label: str
    unit: str = ""
    tag: Tag = ""
    numeric: bool = False


@dataclass(frozen=True)
class Row:
    """Cells of one line; ``tone`` "strong" marks the chosen plan, "muted" baselines."""

    cells: tuple[Cell, ...]
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """A table; ``caption`` says what it shows (also to a screen reader)."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    sortable: bool = False


@dataclass(frozen=True)
class Tile:
    """A key figure: label, value, a line below it, and where the value comes from."""

    label: str
    value: str
    detail: str = ""
    tag: Tag = ""


@dataclass(frozen=True)
class Tiles:
    """A row of key figures."""

    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Part:
    """One piece of a bar; ``weight`` is its share, ``colour`` a CSS colour from the theme."""

    label: str
    detail: str
    weight: float
    colour: str


@dataclass(frozen=True)
class Strip:
    """A bar cut into labelled parts, e.g. the stages of a pipeline."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Variant:
    """One view of a chart, picked by ``label``. ``figure`` is a plotly Figure."""

    label: str
    figure: Any


@dataclass(frozen=True)
class AxisChoice:
    """One quantity that a chart can put on an axis; ``values[t]`` are the values of trace ``t``.

    ``title``, ``suffix`` and ``tick_format`` (d3) dress the axis.
    """

    label: str
    title: str
    suffix: str
    tick_format: str
    log: bool
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class AxisPicker:
    """Lets the reader choose both axes of a chart.

    ``fronts[y][x]`` are the (x, y) corners of the non-dominated line, drawn in trace ``front_trace``.
    """

    choices: tuple[AxisChoice, ...]
    x: int
    y: int
    front_trace: int
    fronts: tuple[tuple[tuple[tuple[float, float], ...], ...], ...]


@dataclass(frozen=True)
class Chart:
    """A drawing with one or several views.

    Attributes:
        id: unique in the page.
        title: heading of the figure; ``alt``: what a reader who cannot see it should know.
        variants: the views; with more than one a menu named ``picker`` chooses.
    """

    id: str
    title: str
    alt: str
    variants: tuple[Variant, ...]
    picker: str = ""
    caption: str = ""
    axes: AxisPicker | None = None


@dataclass(frozen=True)
class Details:
    """Blocks that stay folded until the reader opens them."""

    summary: str
    blocks: tuple[Block, ...]


Block: TypeAlias = "Note | Table | Tiles | Strip | Chart | Details"


def plotly_text(text: str) -> str:
    """Return text that plotly shows literally: it reads tags and entities in labels and hover texts."""
    return html.escape(text, quote=False)


def elided(text: str, length: int = 32) -> str:
    """Return text of at most ``length`` characters, the middle left out, for places that cannot wrap."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def hover(*lines: str) -> str:
    """Return a hover text of several lines, each escaped; the first is bold."""
    first, *rest = (plotly_text(line) for line in lines)
    return "<br>".join([f"<b>{first}</b>", *rest])
