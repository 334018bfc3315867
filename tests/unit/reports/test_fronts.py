"""The page of a front: every plan's numbers stand in it, and it loads nothing."""

from __future__ import annotations

from dse.partition.pareto import Axis
from reports.fronts import render_front_page
from studies.comparison import FrontRow


def row(bits: float, quality: float, tpot: float, energy: float) -> FrontRow:
    values: dict[Axis, float] = {"quality": quality, "tpot": tpot, "energy": energy}
    return FrontRow(values, "tpot", "optimal", 0.0, (("a<b/0", 0, 3), ("c/0", 3, 8)), bits, {})


def test_page_holds_every_plan_and_pair_of_axes() -> None:
    rows = [row(4.25, 0.1234, 0.0567, 8.9), row(8.25, 0.0123, 0.0891, 12.3)]
    text = render_front_page(rows, ("quality", "tpot", "energy"), title="m on c", quality_unit="nats")
    for expected in ("0.1234", "0.0567", "12.3", "4.25", "tpot against quality", "energy against tpot"):
        assert expected in text
    assert "a<b/0" not in text  # escaped everywhere
    assert "a&lt;b/0: layers 0 to 2; c/0: layers 3 to 7" in text
    assert "src=" not in text.partition("<script")[0]
