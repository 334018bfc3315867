"""The reader of YAML documents: one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from dse.documents import Closed, as_file, packaged_names, parse_yaml, read_file, read_packaged, validate
from dse.errors import ConfigError


class Inner(Closed):
    """A nested mapping."""

    size: int = Field(gt=0)


class Outer(Closed):
    """A document."""

    name: str
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()


def test_valid() -> None:
    got = validate(Outer, {"name": "x", "inner": {"size": 1}, "many": [{"size": 2}]}, "f.yaml")
    assert (got.inner, got.many) == (Inner(size=1), (Inner(size=2),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "f.yaml: the file is empty"),
        ([1], r"f.yaml: must hold a mapping of keys, but is \[1\]"),
        ({"nam": "x"}, r"f.yaml: unknown key 'nam' \(did you mean 'name'\?"),
        ({}, "f.yaml: the key 'name' is missing"),
        ({"name": "x", "inner": {"siz": 1}}, r"f.yaml: inner: unknown key 'siz' \(did you mean 'size'\?"),
        (
            {"name": "x", "many": [{"size": 1}, {"size": 0}]},
            r"f.yaml: many.1.size: .*greater than 0, but is 0",
        ),
        ({"name": "x", "inner": 3}, r"f.yaml: inner: must be a mapping \{size\}, but is 3"),
    ],
)
def test_mistakes(content: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        validate(Outer, content, "f.yaml")
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="the key 'a' is given twice"):
        parse_yaml("a: 1\na: 2\n", "f.yaml")


def test_names_and_files(tmp_path: Path) -> None:
    assert as_file("name") is None
    assert as_file("folder/x.YML") == Path("folder/x.YML")
    assert "demo" in packaged_names("studies", "presets")
    with pytest.raises(ConfigError, match=r"unknown study 'dem'.*did you mean 'demo'"):
        read_packaged("studies", "presets", "study", "dem")
    with pytest.raises(ConfigError, match="no such file"):
        read_file(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(tmp_path / "bad.yaml")
