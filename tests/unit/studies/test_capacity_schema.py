"""Files of capacity studies: the packaged ones load, bad ones get one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dse.errors import ConfigError
from hardware_specs.catalogue import load_catalogue
from studies.capacity_schema import capacity_study_names, load_capacity_study, parse_level
from tests.capacity_case import STUDY, write_case


@pytest.mark.parametrize("name", capacity_study_names())
def test_packaged_studies_make_a_load(name: str) -> None:
    study = load_capacity_study(name)
    assert study.name == name
    load_catalogue(study.catalogue)
    load = study.load.load(study.seed)
    assert load.rate_per_s == pytest.approx(study.load.rate_per_s, rel=0.1)
    assert all(entry.levels for entry in load.classes)
    assert study.load.source


def test_the_preset_resembles_its_trace(shared_data: Path) -> None:
    """Oracle: the conversation trace's own means and percentiles."""
    from dse.capacity.traces import read_trace

    made = load_capacity_study("llama70b_conversation").load.load(0)
    trace = read_trace(shared_data / "traces" / "splitwise_conv.csv")
    assert made.prompt_tokens.mean() == pytest.approx(trace.prompt_tokens.mean(), rel=0.1)
    assert made.output_tokens.mean() == pytest.approx(trace.output_tokens.mean(), rel=0.06)
    assert len(made) == pytest.approx(len(trace), rel=0.02)


def test_a_trace_takes_the_place_of_distributions(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("")
    trace = tmp_path / "trace.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,10,5\n1,20,6\n4,30,7\n")
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(STUDY))
    content["load"] = {
        "trace": "trace.csv",
        "rate_per_s": 1.5,
        "classes": [{"name": "chat", "levels": STUDY["load"]["classes"][0]["levels"]}],  # type: ignore[index]
    }
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump(content))
    load = load_capacity_study(str(file)).load.load(0)
    assert load.prompt_tokens.tolist() == [10, 20, 30]
    assert load.rate_per_s == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("load", "rate_per_s"), 0, "load.rate_per_s"),
        (("load", "rate_per_s"), None, "needs a rate"),
        (("load", "duration_s"), -1, "load.duration_s"),
        (("load", "classes"), [], "at least one"),
        (("load", "classes", 0, "levels", 0, "metric"), "ttfb", "did you mean 'ttft'"),
        (("load", "classes", 0, "levels", 0, "percentile"), 0, "must be above 0"),
        (("load", "classes", 0, "levels", 0, "limit_s"), -2, "must be above 0"),
        (("load", "classes", 0, "prompt"), {}, "exactly one of fixed, histogram, lognormal"),
        (("load", "classes", 0, "prompt"), None, "needs lengths"),
        (("load", "classes", 0, "prompt"), {"fixed": -5}, "whole number of at least 1"),
        (("load", "classes", 0, "promt"), {}, "unknown key 'promt'"),
        (("objective"), "money", "objective"),
        (("load", "trace"), "missing.csv", "no such file"),
    ],
)
def test_bad_files_get_one_line(tmp_path: Path, path: Any, value: object, words: str) -> None:
    write_case(tmp_path)
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(STUDY))
    keys = (path,) if isinstance(path, str) else path
    here: Any = content
    for part in keys[:-1]:
        here = here[part]
    here[keys[-1]] = value
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        load_capacity_study(str(file)).load.load(0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_levels_as_text() -> None:
    assert parse_level("ttft:p90:2s") == parse_level("ttft:90:2")
    assert parse_level("e2e:99.9:30").percentile == 99.9
    for text, words in (
        ("ttft:90", "METRIC:PERCENTILE:SECONDS"),
        ("ttft:x:2", "METRIC:PERCENTILE:SECONDS"),
        ("tttf:90:2", "did you mean 'ttft'"),
        ("ttft:101:2", "at most 100"),
        ("ttft:90:0", "above 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_level(text)
