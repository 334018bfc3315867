"""Corpora, tokens and splits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dse.emulate.corpus import Corpus, load_corpus, sample_tokens, tokenize
from dse.errors import ConfigError
from tests.tiny_llama import write_tokenizer

CORPUS = Corpus("numbers", "", "0")


def test_embedded_corpus_is_the_interpreters_help() -> None:
    corpus = load_corpus()
    assert "compound statements" in corpus.text
    assert len(corpus.text) > 300_000
    assert corpus.hash == hashlib.sha256(corpus.text.encode()).hexdigest()[:16]
    assert load_corpus() == corpus


def test_users_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("héllo", encoding="utf-8")
    assert load_corpus(file).text == "héllo"
    assert load_corpus(file).name == "mine.txt"


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    for name, words in (
        ("empty.txt", "is empty"),
        ("binary.txt", "UTF-8"),
        ("none.txt", "cannot read"),
        (".", "read"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            load_corpus(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_tokens_are_the_bytes_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the tokenizer has one token per byte, in the order of its sorted alphabet."""
    from tokenizers import pre_tokenizers

    monkeypatch.setenv("DSE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    write_tokenizer(folder)
    corpus = Corpus("c", "abc é", "h1")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Printable ASCII stands for itself in the byte alphabet, a space is "Ġ", and é is two bytes.
    expected = [alphabet.index(letter) for letter in ("a", "b", "c", "Ġ", "Ã", "©")]
    assert tokenize(corpus, folder).tolist() == expected
    files = list((tmp_path / "cache" / "tokens").iterdir())
    assert len(files) == 1
    monkeypatch.setattr("dse.emulate.corpus._encode", lambda *_: pytest.fail("tokenized twice"))
    assert tokenize(corpus, folder).tolist() == expected


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer"):
        tokenize(CORPUS, tmp_path)


def test_splits_are_disjoint_and_sequences_are_slices() -> None:
    """Oracle: tokens are their own positions, so a sequence says where it was cut."""
    tokens = np.arange(1000, dtype=np.int32)
    seen: dict[str, set[int]] = {}
    for split in ("evaluation", "calibration"):
        starts = set()
        for seed in range(5):
            sample = sample_tokens(CORPUS, tokens, n_tokens=40, sequence_length=10, seed=seed, split=split)
            assert sample.ids.shape == (4, 10)
            assert (np.diff(sample.ids) == 1).all()
            starts |= {int(start) for start in sample.ids[:, 0]}
        assert all(start % 10 == 0 for start in starts)
        seen[split] = starts
    assert not seen["evaluation"] & seen["calibration"]


def test_draws_follow_the_seed_and_nest() -> None:
    tokens = np.arange(4000, dtype=np.int32)

    def draw(n_tokens: int, seed: int) -> list[list[int]]:
        return sample_tokens(CORPUS, tokens, n_tokens=n_tokens, sequence_length=20, seed=seed).ids.tolist()

    assert draw(100, 1) == draw(100, 1)
    assert draw(100, 1) != draw(100, 2)
    assert draw(200, 1)[:5] == draw(100, 1)


@pytest.mark.parametrize(
    ("n_tokens", "sequence_length", "words"),
    [
        (100, 30, "multiple of the sequence length 30"),
        (-30, 30, "at least 1"),
        (0, 30, "at least 1"),
        (4, 1, "at least 2"),
        (990, 30, "has 750 tokens for evaluation"),
    ],
)
def test_bad_sizes(n_tokens: int, sequence_length: int, words: str) -> None:
    tokens = np.arange(1000, dtype=np.int32)
    with pytest.raises(ConfigError, match=words):
        sample_tokens(CORPUS, tokens, n_tokens=n_tokens, sequence_length=sequence_length)
