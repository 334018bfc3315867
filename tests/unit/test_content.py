"""Canonical JSON, hashes and atomic files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dse.content import cache_dir, canonical_json, content_hash, write_atomic


def test_canonical_json_ignores_key_order() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})


def test_hash_is_sha256_of_the_text() -> None:
    assert content_hash([1]) == hashlib.sha256(b"[1]").hexdigest()[:16]


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "sub" / "file.txt"
    write_atomic(target, "old")

    def broken(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_CACHE", "/a")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("DSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/b/dse")
