"""``dse capacity`` from files to files: JSON, report, journal, resume, interruption and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dse.cli.main import app
from dse.errors import ConfigError, NoFeasiblePlan
from dse.formats.grammar import parse_precision
from dse.graph.cache import load_graph
from dse.graph.units import units_of
from dse.sensitivity.noise import noise_table
from reports.capacity import render_capacity_report
from studies import capacity_run
from studies.catalogue import resolve_model
from tests.capacity_case import write_case

RUNNER = CliRunner()


def run(*arguments: str) -> Any:
    """Run the program, with expected errors raised as they are."""
    return RUNNER.invoke(app, ["capacity", *arguments], catch_exceptions=False)


def test_a_run_and_its_documents(tmp_path: Path) -> None:
    study, out = write_case(tmp_path), tmp_path / "out"
    done = run(str(study), "-o", str(out), "--json", "--ask", "all")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document == json.loads((out / "result.json").read_text())
    assert document["passed"] is True
    assert document["fleet"]["gap_frac"] < 0.03
    assert document["fleet"]["bound"] <= document["fleet"]["usd_per_h"] + 1e-9
    assert len(document["questions"]) == 13
    assert document["simulated"]["n_finished"] == document["load"]["n_requests"]
    page = (out / "report.html").read_text()
    assert page == render_capacity_report(document)
    for anchor in (
        "fleet",
        "latency",
        "utilisation",
        "rate",
        "break-even",
        "price",
        "growth",
        "more",
        "sources",
    ):
        assert f'<section id="{anchor}"' in page
    again = run(str(study), "-o", str(out), "--resume", "--ask", "all", "--json")
    repeated = json.loads(again.stdout)
    for each in (document, repeated):
        each.pop("times")
        each["fleet"].pop("solver_time_s")
    assert repeated == document
    assert "simulating" not in again.stderr


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out = write_case(tmp_path), tmp_path / "out"

    def stop(_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(capacity_run.QUESTIONS, "quantization", stop)
        assert RUNNER.invoke(app, ["capacity", str(study), "-o", str(out)]).exit_code == 130
    assert not (out / "result.json").exists()
    assert not (out / "report.html").exists()
    assert "headroom" in json.loads((out / "journal.json").read_text())["answers"]
    done = run(str(study), "-o", str(out), "--resume")
    assert done.exit_code == 0
    assert "simulating" not in done.stderr
    assert "asking: headroom" not in done.stderr
    assert "no fleet below" in done.stdout
    with pytest.raises(ConfigError, match="of another study"):
        run(str(study), "-o", str(out), "--resume", "--rate", "9")


def test_quality_decides_which_replicas_there_are(tmp_path: Path) -> None:
    """A table in which int8 costs 0.1 % a layer: 16 layers are within +2 %, not within +1 %."""
    graph = load_graph(resolve_model("llama-3.2-1b"))
    units = units_of(graph, "block")
    choices = (parse_precision("bf16"), parse_precision("int8_row"))
    table = replace(
        noise_table(graph, units, choices), unit="nats", metric="kl", penalty=np.tile([0.0, 1e-3], (16, 1))
    )
    file = tmp_path / "kl.json"
    file.write_text(json.dumps(table.to_json()))
    study = write_case(tmp_path)
    kept = {}
    for most in ("0.02", "0.01"):
        asked = ("--sensitivity", str(file), "--max-perplexity", most, "--ask", "none", "--json")
        document = json.loads(run(str(study), *asked).stdout)
        kept[most] = {entry["name"] for entry in document["absent"]}
        claims = [group["quality"]["perplexity_frac"] for group in document["fleet"]["groups"]]
        assert all(claim is not None and claim <= float(most) for claim in claims)
    assert not kept["0.02"]
    assert kept["0.01"] == {"small int8_row/bf16/bf16", "large int8_row/bf16/bf16"}
    file.write_text("{}")
    with pytest.raises(ConfigError, match="is not a sensitivity table"):
        run(str(study), "--sensitivity", str(file))


def test_the_best_service_within_a_budget(tmp_path: Path) -> None:
    """Twice the money buys tighter limits, and the fleet stays within it."""
    study = write_case(tmp_path)
    found = {}
    for budget in (0.7, 3.5):
        asked = ("--objective", "service", "--budget", str(budget), "--ask", "none", "--json")
        document = json.loads(run(str(study), *asked).stdout)
        assert document["passed"] is True
        assert document["fleet"]["usd_per_h"] <= budget + 1e-9
        found[budget] = document["limits_factor"]
    assert found[3.5] < found[0.7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "-3"), "--rate: must be above 0"),
        (("--level", "ttft:90"), "METRIC:PERCENTILE:SECONDS"),
        (("--ask", "spott"), "did you mean 'spot'"),
        (("--catalogue", "cloud_sicks"), "did you mean 'cloud_six'"),
        (("--objective", "fun"), "unknown objective"),
        (("--trace", "none.csv"), "no such file"),
        (("--resume",), "needs the folder"),
        (("--out", "/proc/nope"), "cannot be written"),
        (("--precisions", "int4_g12x"), "int4_g12x"),
    ],
)
def test_bad_input_gets_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    study = write_case(tmp_path)
    with pytest.raises(ConfigError) as caught:
        run(str(study), *arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    study = write_case(tmp_path)
    with pytest.raises(NoFeasiblePlan, match="breaks first"):
        run(str(study), "--level", "tpot:p90:0.0001")
    with pytest.raises(NoFeasiblePlan, match=r"USD/h instead of 0\.1"):
        run(str(study), "--budget", "0.1")
    with pytest.raises(ConfigError, match="needs a budget"):
        run(str(study), "--objective", "service")
    with pytest.raises(NoFeasiblePlan, match="even at limits 16 times"):
        run(str(study), "--objective", "service", "--budget", "0.1")
    with pytest.raises(ConfigError, match="needs a load: give --rate or --trace"):
        run("llama-3.2-1b")
    with pytest.raises(ConfigError, match=r"no capacity study .*did you mean 'llama8b_owned'"):
        run("llama8b_own")


def test_a_page_of_another_result_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the result and its page, the folder holds the new result and no page."""
    study, out = write_case(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("of another result")

    def stop(*_: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("reports.capacity.write_capacity_report", stop)
        stopped = RUNNER.invoke(app, ["capacity", str(study), "-o", str(out), "--ask", "none"])
    assert stopped.exit_code == 130
    assert f"dse report {out}" in " ".join(stopped.stderr.split())
    assert json.loads((out / "result.json").read_text())["passed"] is True
    assert not (out / "report.html").exists()
    assert RUNNER.invoke(app, ["report", str(out)]).exit_code == 0
    assert "<html" in (out / "report.html").read_text()
