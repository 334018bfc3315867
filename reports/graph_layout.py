"""Where the boxes and lines of a block's drawing lie: operators in rows by data flow, lines as curves."""

from __future__ import annotations

from dataclasses import dataclass

from dse.graph.operator import Block
from dse.graph.view import extent_text

BOX_WIDTH, BOX_HEIGHT = 172, 44
GAP_X, GAP_Y = 22, 34
MARGIN = 60


@dataclass(frozen=True)
class Box:
    """An operator, at the place of its left upper corner; ``index`` is its row of numbers."""

    index: int
    x: float
    y: float
    name: str
    module: str
    full: str
    kind: str

    @property
    def font_px(self) -> float:
        """Size of the name that fits the box."""
        return min(12.5, 12.5 * 21 / len(self.name))


@dataclass(frozen=True)
class Line:
    """Data flow along an SVG path; ``told`` says what flows."""

    path: str
    told: str
    quiet: bool


@dataclass(frozen=True)
class Drawing:
    """A block's drawing in pixels."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    ports: tuple[tuple[str, float, float], ...]


def draw_block(block: Block, item_bytes: int) -> Drawing:
    """Place the operators of a block below what they read, those of one row beside each other."""
    names = [op.name for op in block.ops]
    reads: dict[str, list[str]] = {name: [] for name in names}
    for edge in block.edges:
        if edge.source and edge.target:
            reads[edge.target].append(edge.source)
    rank: dict[str, int] = {}
    for name in names:
        rank[name] = 1 + max((rank[source] for source in reads[name] if source in rank), default=-1)
    rows: dict[int, list[str]] = {}
    for name in names:
        rows.setdefault(rank[name], []).append(name)
    widest = max(len(row) for row in rows.values())
    width = widest * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    place: dict[str, tuple[float, float]] = {}
    for level in sorted(rows):
        row = rows[level]
        start = (width - len(row) * (BOX_WIDTH + GAP_X) + GAP_X) / 2
        for column, name in enumerate(row):
            place[name] = (start + column * (BOX_WIDTH + GAP_X), 46 + level * (BOX_HEIGHT + GAP_Y))
    height = 46 + (max(rows) + 1) * (BOX_HEIGHT + GAP_Y) + 24
    middle = width / 2
    ports = (("in", middle, 16.0), ("out", middle, height - 14))
    lines = _lines(block, place, rank, ports, width, item_bytes)
    boxes = tuple(
        Box(index, *place[op.name], *_label(op.name), op.kind) for index, op in enumerate(block.ops)
    )
    return Drawing(width, height, boxes, lines, ports)


def _lines(
    block: Block,
    place: dict[str, tuple[float, float]],
    rank: dict[str, int],
    ports: tuple[tuple[str, float, float], ...],
    width: float,
    item_bytes: int,
) -> tuple[Line, ...]:
    used = {"left": 0, "right": 0}
    lines = []
    for edge in block.edges:
        if edge.origin:
            continue  # tables of the prologue reach every block; lines from outside would only clutter
        begin = _bottom(place[edge.source]) if edge.source else (ports[0][1], ports[0][2] + 8)
        end = _top(place[edge.target]) if edge.target else (ports[1][1], ports[1][2] - 10)
        first = rank[edge.source] if edge.source else -1
        last = rank[edge.target] if edge.target else max(rank.values()) + 1
        told = (
            f"{edge.source or 'from the block before'} → {edge.target or 'to the next block'}: "
            f"{extent_text(edge.elements)} elements of {item_bytes} bytes"
        )
        if last - first <= 1:
            lines.append(Line(_straight(begin, end), told, quiet=False))
            continue
        between = [place[name][0] for name, level in rank.items() if first < level < last]
        if all(abs(begin[0] - BOX_WIDTH / 2 - x) >= BOX_WIDTH + GAP_X / 2 for x in between):
            lines.append(Line(_along(begin, end, begin[0]), told, quiet=False))
            continue
        side = "left" if begin[0] < width / 2 - 1 or end[0] < width / 2 - 1 else "right"
        lane = 10 + 9 * (used[side] % 5)
        used[side] += 1
        border = lane if side == "left" else width - lane
        lines.append(Line(_along(begin, end, border), told, quiet=True))
    return tuple(lines)


def _label(name: str) -> tuple[str, str, str]:
    module, _, last = name.rpartition(".")
    return last, module, name


def _bottom(corner: tuple[float, float]) -> tuple[float, float]:
    return corner[0] + BOX_WIDTH / 2, corner[1] + BOX_HEIGHT


def _top(corner: tuple[float, float]) -> tuple[float, float]:
    return corner[0] + BOX_WIDTH / 2, corner[1] - 2


def _straight(begin: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (u, v) = begin, end
    bend = (v - y) / 2
    return f"M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {u:.0f} {v - bend:.0f} {u:.0f} {v:.0f}"


def _along(begin: tuple[float, float], end: tuple[float, float], lane: float) -> str:
    """Return a path that goes to the height of ``lane`` and down there, past the rows in between."""
    (x, y), (u, v) = begin, end
    down, up = y + 26, v - 26
    return (
        f"M{x:.0f} {y:.0f} C{x:.0f} {y + 13:.0f} {lane:.0f} {y + 9:.0f} {lane:.0f} {down:.0f} "
        f"L{lane:.0f} {up:.0f} C{lane:.0f} {v - 9:.0f} {u:.0f} {v - 13:.0f} {u:.0f} {v:.0f}"
    )
