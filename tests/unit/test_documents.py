"""The YAML reader against PyYAML's safe loader, and what it refuses beyond that."""

from pathlib import Path

import pytest
import yaml

from dse.documents import parse_yaml
from dse.errors import ConfigError

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for top in ("hardware_specs", "studies")
    for path in (ROOT / top).rglob("*.yaml")
)

TEXTS = [
    "",
    "a: 1\nb: [1.5, 1e9, 1.83e+9, true, null, 2024-01-01, 'x', \"y\"]\n",
    "1: one\ntrue: yes\n",
    "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nagain: *b\n",
    "- !!set {a, b}\n- !!str 5\n- {deep: {deeper: [1, {x: ~}]}}\n",
]


@pytest.mark.parametrize("file", FILES)
def test_packaged_files_read_as_pyyaml_reads_them(file):
    text = (ROOT / file).read_text("utf-8")
    assert parse_yaml(text, file) == yaml.safe_load(text)


@pytest.mark.parametrize("text", TEXTS)
def test_rare_constructs_read_as_pyyaml_reads_them(text):
    assert parse_yaml(text, "x.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "x.yaml: line 2, column 1: not valid YAML: the key 'a' is given twice"),
        ("x: {a: 1, b: 2, a: 3}\n", "the key 'a' is given twice"),
        ("1: a\n1: b\n", "the key '1' is given twice"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: !!python/name:os.system\n", "could not determine a constructor"),
        ("a: [1\n", "not valid YAML"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
