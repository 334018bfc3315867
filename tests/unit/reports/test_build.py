"""The whole page: same bytes, no outside world, no text that breaks out."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports.build import content_policy, heading, render_report, workload_text, write_report
from studies.result import StudyResult
from tests.factories_result import make_result

ROOT = Path(__file__).resolve().parents[3]
EVIL = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>{{7*7}}%{x}'
VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Collects what a browser would see: elements, their ids, loaded addresses and nesting errors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.data: dict[str, str] = {}
        self.errors: list[str] = []
        self._script = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.loads += [given[key] or "" for key in ("src", "data") if key in given]
        if tag == "link":
            self.loads.append(given.get("href") or "")
        if tag not in VOID:
            self.open.append(tag)
        self._script = (given.get("id") or "") if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and self._script:
            self.data[self._script] = self.data.get(self._script, "") + data


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return make_result()


@pytest.fixture(scope="module")
def text(result: StudyResult) -> str:
    return render_report(result)


def test_same_bytes_in_another_process(text: str) -> None:
    code = (
        "import hashlib\nfrom reports.build import render_report\n"
        "from tests.factories_result import make_result\n"
        "print(hashlib.sha256(render_report(make_result()).encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "12345", "PATH": ""},
    )
    assert done.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_same_bytes_after_a_round_trip_through_json(result: StudyResult, text: str) -> None:
    assert render_report(StudyResult.from_json(result.to_json())) == text


def test_page_is_whole_and_loads_nothing(text: str) -> None:
    page = Page(text)
    assert page.errors == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith("data:") for load in page.loads)
    assert page.tags.count("h1") == 1
    assert text.count("* plotly.js v") == 1
    assert len(text.encode()) < 8_000_000


def test_every_chart_has_its_data(text: str) -> None:
    page = Page(text)
    charts = [name for name in page.ids if name.endswith("-data")]
    assert len(charts) == 9
    for name in charts:
        assert json.loads(page.data[name])["views"]
        assert name.removesuffix("-data") in page.ids


def test_the_policy_names_exactly_the_scripts_of_the_page(text: str) -> None:
    scripts = tuple(re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL))
    assert len(scripts) == 2
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy.group(1).replace("&#39;", "'") == content_policy(scripts)
    assert "http" not in policy.group(1)


def test_hostile_names_stay_text(result: StudyResult) -> None:
    """Every string of the result turns hostile; the page keeps its elements."""

    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {key: poison(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [poison(entry) for entry in value]
        return EVIL if isinstance(value, str) else value

    hostile = replace(
        result,
        model=poison(result.model),
        study=poison(result.study),
        devices=poison(result.devices),
        dropped=poison(result.dropped),
        provenance={EVIL: EVIL, "list": [EVIL]},
        chosen_reason=EVIL,
        front=[replace(p, name=EVIL if p.name == result.chosen else p.name) for p in result.front],
        chosen=EVIL,
    )
    text = render_report(hostile)
    page = Page(text)
    clean = Page(render_report(result))
    assert page.errors == []
    assert "img" not in page.tags
    assert page.tags.count("script") == clean.tags.count("script")
    assert "{{7*7}}" in text
    assert "alert(1)</script>" not in text


def test_empty_result_is_a_page_too() -> None:
    empty = make_result(n_front=0, measured=False)
    text = render_report(replace(empty, baselines=[], units=[], roofline=[], timeline=[], sensitivity={}))
    assert Page(text).errors == []
    assert "recommends no plan" in text


def test_one_plan_and_one_layer() -> None:
    assert Page(render_report(make_result(n_front=1, n_layers=1, measured=False))).errors == []


def test_write_report(tmp_path: Path, result: StudyResult, text: str) -> None:
    path = write_report(result, tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8") == text


def test_heading(result: StudyResult) -> None:
    assert heading(result).model == "toy-135m-instruct"
    assert heading(result).cluster == "toy_boards"
    assert workload_text("chat") == "chat"
    assert (
        workload_text({"batch": 1, "prompt_tokens": 2048, "output_tokens": 64, "tpot_limit_s": 0.05})
        == "batch of 1, 2,048 prompt + 64 output tokens, each token within 50.0\N{NO-BREAK SPACE}ms"
    )
