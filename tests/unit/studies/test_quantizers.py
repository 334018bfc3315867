"""The study of quantizers: verdicts by hand; by name, the bars on the demo model."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.formats.grammar import parse_precision
from studies import quantizers as q


def _result(row: tuple[str, str], seed: int, perplexity: float) -> q.RowResult:
    return q.RowResult(row[0], "int4_g64", row[1], seed, perplexity, 10.0, 0.1, 4.25, 4096, 1.0)


def test_names_of_claims_and_bars_are_rows() -> None:
    for row, activations in [
        *(side for claim in q.CLAIMS for side in (claim.better, claim.worse)),
        *(bar.row for bar in q.BARS),
        *(bar.of for bar in q.BARS if bar.of is not None),
    ]:
        assert activations in q.ROWS[row].activations
    for row in q.ROWS.values():
        for activations in row.activations:
            parse_precision(f"{row.weights}/{activations}/bf16")


def test_verdicts_by_hand() -> None:
    a, b = ("a", "bf16"), ("b", "bf16")
    results = q.by_row([_result(a, 0, 11), _result(a, 1, 13), _result(b, 0, 12), _result(b, 1, 12)])
    assert q.claim_holds(q.Claim("a < b", a, b), results) == {0: True, 1: False}
    margins = q.bar_margin(q.Bar("a", a, 0.13), results)
    assert margins == {0: (pytest.approx(0.1), 0.13), 1: (pytest.approx(0.3), 0.13)}
    relative = q.bar_margin(q.Bar("a", a, 0.5, b), results)
    assert relative[0] == (pytest.approx(0.1), pytest.approx(0.1))
    assert q.claim_holds(q.Claim("a < c", a, ("c", "bf16")), results) == {}


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("bar", q.BARS, ids=lambda bar: bar.text)
def test_bars_on_the_demo_model(bar: q.Bar) -> None:
    """Three calibration seeds, minutes each; rows that are on disk are not measured again."""
    from dse.graph.cache import load_graph
    from dse.graph.source import load_source
    from tests.demo_model import demo_folder

    source = load_source(Path(demo_folder()))
    graph, quality = load_graph(source), q.default_quality()
    rows = [bar.row, *([] if bar.of is None else [bar.of])]
    found = q.by_row(
        [
            entry
            for name, _ in rows
            for seed in q.SEEDS
            for entry in q.run_row(q.ROWS[name], seed, source, graph, quality)
        ]
    )
    for increase, limit in q.bar_margin(bar, found).values():
        assert increase <= limit
