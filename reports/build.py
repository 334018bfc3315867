"""From a study's result to one HTML file that needs nothing but a browser."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from dse.content import write_atomic
from reports.blocks import Block
from reports.figures import chart_json
from reports.points import name_of
from reports.section import all_sections
from reports.theme import TAG_COLOURS, templates
from reports.units import fmt_si, plural
from studies.result import StudyResult


@dataclass(frozen=True)
class RenderedSection:
    """A section with its blocks, as the page template reads it."""

    name: str
    title: str
    nav: str
    lead: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Heading:
    """The top of the page: model, cluster and workload in words."""

    model: str
    cluster: str
    workload: str
    facts: str


def write_report(result: StudyResult, path: Path) -> Path:
    """Write the report of a result, in place of an older one only once it is whole; return ``path``."""
    write_atomic(path, render_report(result))
    return path


def render_report(result: StudyResult) -> str:
    """Return the report as one HTML text; equal results give equal bytes, in any process."""
    sections = tuple(
        RenderedSection(s.name, s.title, s.nav, s.lead, s.render(result)) for s in all_sections()
    )
    return render_page("page.html.j2", heading(result), sections)


def render_page(template: str, top: object, sections: tuple[RenderedSection, ...]) -> str:
    """Return a page as one HTML text that loads nothing.

    Args:
        template: its file in ``templates``, which extends or is ``page.html.j2``.
        top: what the template reads as ``heading``.
        sections: in page order; at least one.
    """
    scripts = (_plotly_script(), template_text("report.js"))
    return (
        page_environment()
        .get_template(template)
        .render(
            heading=top,
            sections=sections,
            style=Markup(template_text("style.css")),  # noqa: S704  our own file
            scripts=[Markup(script) for script in scripts],  # noqa: S704  plotly's and our own file
            policy=content_policy(scripts),
            themes=Markup(json.dumps(templates(), sort_keys=True)),  # noqa: S704  our own colours
            tags=TAG_COLOURS,
        )
    )


def heading(result: StudyResult) -> Heading:
    """Return the headline of a result."""
    model = result.model
    workload = result.study.get("workload")
    facts = [f"{fmt_si(model['parameters'])} parameters"] if model.get("parameters") else []
    if model.get("n_layers"):
        facts.append(plural(int(model["n_layers"]), "layer"))
    if result.study.get("runtime"):
        facts.append(f"runtime {name_of(result.study['runtime'])}")
    if result.study.get("name"):
        facts.append(f"study {result.study['name']}")
    return Heading(
        model=name_of(model.get("name") or result.study.get("model")),
        cluster=name_of(result.study.get("cluster")),
        workload=workload_text(workload),
        facts=" · ".join(facts),
    )


def workload_text(workload: object) -> str:
    """Return a workload in words: batch, tokens in and out, and its limits."""
    if not isinstance(workload, dict) or "batch" not in workload:
        return name_of(workload, "unstated workload")
    words = [
        f"batch of {workload['batch']:,}",
        f"{workload.get('prompt_tokens', 0):,} prompt + {workload.get('output_tokens', 0):,} output tokens",
    ]
    for key, label in (("ttft_limit_s", "first token"), ("tpot_limit_s", "each token")):
        if workload.get(key):
            words.append(f"{label} within {fmt_si(workload[key], 's')}")
    return ", ".join(words)


def content_policy(scripts: tuple[str, ...]) -> str:
    """Return a content security policy under which only these scripts run and nothing is loaded.

    Even text that escaped the template by a mistake could then neither run nor call home (CSP Level 3).
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n")


def template_text(name: str) -> str:
    """Return a file of ``templates``."""
    return resources.files("reports").joinpath("templates", name).read_text(encoding="utf-8")


def page_environment() -> jinja2.Environment:
    """Autoescape is on for every template: each string of a result is foreign text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    environment.filters["chart_json"] = lambda chart: Markup(chart_json(chart))  # noqa: S704  escaped there
    environment.filters["height"] = lambda variant: int(variant.figure.layout.height)
    return environment
