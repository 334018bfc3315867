"""Study files: what is read, and one clear line for each likely mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from dse.errors import ConfigError
from studies.schema import load_study, load_workload, preset_names, workload_names

GOOD = """
name: mine
model: gpt2
cluster: edge_pair
workload: {batch: 2, prompt_tokens: 16, output_tokens: 4}
precisions: [int4_g64, bf16]
quality: {tokens: 512}
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return str(path)


def test_reads_a_study(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GOOD))
    assert study.workload.total_context == 20
    assert study.quality.tokens == 512
    assert study.search.trials == 60
    assert study.to_json()["precisions"] == ["int4_g64", "bf16"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    assert load_study(name).name == name


@pytest.mark.parametrize("name", workload_names())
def test_every_workload_loads(name: str) -> None:
    assert load_workload(name).batch >= 1


def test_hash_changes_with_any_input(tmp_path: Path) -> None:
    first = load_study(write(tmp_path, GOOD))
    second = load_study(write(tmp_path, GOOD.replace("tokens: 512", "tokens: 513")))
    assert first.hash != second.hash


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokens: 512", "tokenz: 512", r"quality: unknown key 'tokenz' \(did you mean 'tokens'\?"),
        ("batch: 2", "batch: -2", r"workload\.batch: must be a whole number of at least 1, but got -2"),
        ("batch: 2", "batch: many", r"workload: batch: must be a valid integer.*, but is 'many'"),
        ("cluster: edge_pair\n", "", r"the key 'cluster' is missing"),
        (
            "workload: {batch: 2, prompt_tokens: 16, output_tokens: 4}",
            "workload: chatt",
            r"unknown workload 'chatt' \(did you mean 'chat'\?",
        ),
        ("name: mine", "name: a/b", r"name: String should match pattern"),
        ("precisions: [int4_g64, bf16]", "precisions: []", r"precisions: needs at least one entry"),
        ("model: gpt2", "model: [", r"line \d+, column \d+: not valid YAML"),
    ],
)
def test_mistakes_give_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        load_study(path)
    assert "\n" not in str(caught.value)
    if "workload 'chatt'" not in str(caught.value):
        assert str(caught.value).startswith(path)


def test_unknown_preset_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown study 'dem'"):
        load_study("dem")
    with pytest.raises(ConfigError, match="no such file"):
        load_study(str(tmp_path / "none.yaml"))
