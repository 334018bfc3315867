"""Every registered report section draws any result: full, unmeasured, empty; a new one is tested unasked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.section import Section, all_sections
from studies.result import StudyResult
from tests.factories_result import make_result

EMPTY = replace(
    make_result(),
    devices=[],
    units=[],
    baselines=[],
    comparisons=[],
    sensitivity={"tables": [], "correlations": []},
    hypervolume={},
    progress=[],
    roofline=[],
    timeline=[],
    dropped=[],
)
RESULTS = {"full": make_result(), "unmeasured": make_result(measured=False), "empty": EMPTY}


@pytest.mark.parametrize("section", all_sections(), ids=lambda section: section.name)
@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_draws_something_and_the_same_twice(section: Section, result: StudyResult) -> None:
    render = section.render
    first = render(result)
    assert len(first) >= 1
    assert repr(render(result)) == repr(first)


def test_names_and_order_are_distinct() -> None:
    sections = all_sections()
    assert len({section.name for section in sections}) == len(sections)
    assert [section.order for section in sections] == sorted(section.order for section in sections)
