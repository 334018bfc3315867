"""A report is a sequence of sections; each is one file in ``reports.sections`` with a decorator."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from dse.registry import Registry
from reports.blocks import Block
from studies.result import StudyResult

Render = Callable[[StudyResult], tuple[Block, ...]]


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        name: anchor in the page, lower case.
        title: heading; ``nav``: short form for the navigation bar; ``lead``: one sentence under the heading.
        order: place in the page, small first.
        render: makes the blocks; a pure function of the result.
    """

    name: str
    title: str
    nav: str
    lead: str
    order: int
    render: Render


SECTIONS: Registry[Section] = Registry("report section")


def section(name: str, *, title: str, nav: str, order: int, lead: str = "") -> Callable[[Render], Render]:
    """Return a decorator that files a render function as the section ``name``."""

    def add(render: Render) -> Render:
        SECTIONS.register(name)(Section(name, title, nav, lead, order, render))
        return render

    return add


def all_sections() -> tuple[Section, ...]:
    """Import every file of ``reports.sections`` and return the sections in page order."""
    package = importlib.import_module("reports.sections")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"reports.sections.{module.name}")
    return tuple(sorted((SECTIONS.get(name) for name in SECTIONS), key=lambda s: (s.order, s.name)))
