"""The main job on a tiny random Llama, through the command line: results, resumption, reproducibility."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_llama import write_tiny_llama

STUDY = """
name: tiny
model: {model}
cluster: edge_three
workload: {{batch: 4, prompt_tokens: 64, output_tokens: 16}}
granularity: sublayer
precisions: [int3_g32_asym, int4_g32_asym, int8_g32_asym, int8_row/int8_token/bf16, bf16]
uniform: [int3_g32_asym, int4_g32_asym, int8_g32_asym, mxfp4/bf16/bf16, bf16]
quality: {{corpus: {corpus}, tokens: 512, sensitivity_tokens: 128, trial_tokens: 128, sequence_length: 64}}
search: {{trials: {trials}, front_points: 4, finalists: 4}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job")
    write_tiny_llama(path / "tiny-llama")
    text = "".join(f"Line {i}: the quick brown fox jumps over {i * i % 97} lazy dogs.\n" for i in range(400))
    (path / "corpus.txt").write_text(text)
    (path / "study.yaml").write_text(
        STUDY.format(model=path / "tiny-llama", corpus=path / "corpus.txt", trials=14)
    )
    return path


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"DSE_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def dse(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dse.cli.main", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(cache), timeout=300
    )


def result_of(run: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / "result.json").read_text())
    document.pop("times")
    return document


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """One whole run, whose terminal output is kept beside its results."""
    done = dse("run", str(folder / "study.yaml"), "-o", str(folder / "run"), cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "run"


def test_writes_everything_that_it_promises(finished: Path, folder: Path) -> None:
    result = result_of(finished)
    assert (finished / "report.html").read_text().startswith("<!doctype html>")
    assert not (finished / "unfinished").exists()
    for point in result["front"]:
        plan = json.loads((finished / "plans" / point["name"] / "plan.json").read_text())
        assert plan == point["plan"]
        assert point["measured"] is not None
    assert result["chosen"] in {point["name"] for point in result["front"]}
    shown = (folder / "stdout.txt").read_text()
    assert "ppl measured" in shown
    assert "KL predicted" in shown
    assert f"recommended (*): {result['chosen']}" in shown
    assert shown.rstrip().endswith("report.html")


def test_result_is_consistent(finished: Path) -> None:
    result = result_of(finished)
    assert {row["device"] for row in result["dropped"]} <= {
        "rockchip_rk3588_npu",
        "qualcomm_hexagon_x_elite",
        "nvidia_jetson_agx_orin_64gb",
    }
    names = [point["name"] for point in result["baselines"]]
    assert "uniform-bf16" in names
    full = next(p for p in result["baselines"] if p["name"] == "uniform-bf16")
    assert full["measured"]["kl_nats"] == 0
    assert full["measured"]["perplexity"] == pytest.approx(result["reference"]["perplexity"])
    assert full["predicted"]["effective_bits"] == 16
    for point in result["front"]:
        predicted = point["predicted"]
        assert predicted["total_s"] == pytest.approx(predicted["ttft_s"] + 15 * predicted["tpot_s"])
        assert predicted["memory_total_bytes"] == pytest.approx(sum(predicted["memory_bytes"].values()))
        if point["solver"]:
            assert point["solver"]["bound"] <= point["solver"]["value"] * (1 + 1e-9)
            assert point["solver"]["value"] == pytest.approx(predicted["total_s"])
    volume = result["hypervolume"]
    assert volume["combined"] >= max(volume["exact"], volume["tpe"] or 0.0)
    assert len(result["progress"]) == 14
    assert result["progress"][-1]["hypervolume"] == pytest.approx(volume["combined"])
    assert {"kl", "variance", "variance_stochastic"} == {t["metric"] for t in result["sensitivity"]["tables"]}


def test_published_planners_stand_beside_the_recommended_plan(finished: Path) -> None:
    """None that keeps the plan's predicted loss is faster than the proven bound."""
    result = result_of(finished)
    found = result["planners"]
    chosen = next(point for point in result["front"] if point["name"] == result["chosen"])
    assert found["value_s"] == chosen["predicted"]["total_s"]
    assert found["bound_s"] <= found["value_s"] * (1 + 1e-9)
    assert len({row["name"] for row in found["rows"]}) == 5
    for row in found["rows"]:
        assert (row["value"] is None) == bool(row["reason"])
        if row["value"] is not None and not row["breaks"]:
            assert row["value"] >= found["bound_s"] * (1 - 1e-9)


def test_report_is_rebuilt_byte_for_byte(finished: Path, folder: Path) -> None:
    again = folder / "again.html"
    done = dse("report", str(finished / "result.json"), "-o", str(again), cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == (finished / "report.html").read_bytes()


def test_second_process_without_cache_finds_the_same(finished: Path, folder: Path) -> None:
    done = dse("run", str(folder / "study.yaml"), "-o", str(folder / "run2"), cache=folder / "cache2")
    assert done.returncode == 0, done.stderr
    assert result_of(folder / "run2") == result_of(finished)


def test_killed_and_resumed_run_finds_the_same(finished: Path, folder: Path) -> None:
    """SIGKILL three times, wherever it hits; then --resume ends with the uninterrupted result."""
    run, cache = folder / "run3", folder / "cache3"
    command = [sys.executable, "-m", "dse.cli.main", "run", str(folder / "study.yaml"), "-o", str(run)]
    for wait_for in ("cache", "trials", "later"):
        process = subprocess.Popen(
            [*command, "--resume"],
            env=environment(cache),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            cells = len(list((cache / "sensitivity").glob("*.json")))
            journal = run / "trials.journal"
            n_lines = len(journal.read_bytes().splitlines()) if journal.exists() else 0
            if (
                (wait_for == "cache" and cells > 3)
                or (wait_for == "trials" and n_lines > 20)
                or (wait_for == "later" and n_lines > 60)
            ):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (run / "result.json").exists()
        assert not list(cache.rglob("*.html"))
    refused = dse("run", str(folder / "study.yaml"), "-o", str(run), cache=cache)
    assert refused.returncode == 2
    assert "--resume goes on" in refused.stderr
    done = dse("run", str(folder / "study.yaml"), "-o", str(run), "--resume", cache=cache)
    assert done.returncode == 0, done.stderr
    assert result_of(run) == result_of(finished)


def test_ctrl_c_is_one_line_and_130(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dse.cli.main",
        "run",
        str(folder / "study.yaml"),
        "-o",
        str(folder / "run4"),
    ]
    process = subprocess.Popen(
        command, env=environment(folder / "cache4"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if list((folder / "cache4" / "sensitivity").glob("*.json")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; finished work is kept" in stderr
    assert "Traceback" not in stderr
