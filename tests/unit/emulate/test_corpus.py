"""Corpora, tokens and splits."""

from __future__ import annotations

import hashlib
import sys
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


def test_splits_are_disjoint_whatever_the_lengths_and_sequences_are_slices() -> None:
    """Oracle: tokens are their own positions, so a sequence says where it was cut."""
    tokens = np.arange(20_000, dtype=np.int32)
    seen: dict[str, set[int]] = {"evaluation": set(), "calibration": set()}
    for split, lengths in (("evaluation", (512, 96, 700, 2048)), ("calibration", (512, 100, 1024))):
        for length in lengths:
            for seed in range(3):
                sample = sample_tokens(
                    CORPUS,
                    tokens,
                    n_tokens=2 * length,
                    sequence_length=length,
                    seed=seed,
                    split=split,  # type: ignore[arg-type]
                )
                assert sample.ids.shape == (2, length)
                steps = np.diff(sample.ids)
                # One step inside a region; between two regions of a split lie whole regions of the other.
                assert set(steps.flatten().tolist()) <= {1, 513, 3 * 512 + 1}
                assert length > 512 or length == 96 or length == 100 or (steps == 1).all()
                seen[split] |= set(sample.ids.flatten().tolist())
    assert not seen["evaluation"] & seen["calibration"]


def test_a_first_token_takes_a_place() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    sample = sample_tokens(CORPUS, tokens, n_tokens=40, sequence_length=10, bos=7777)
    assert sample.bos == 7777
    assert (sample.ids[:, 0] == 7777).all()
    assert sample.ids.shape == (4, 10)
    plain = sample_tokens(CORPUS, tokens, n_tokens=40, sequence_length=10)
    assert plain.bos is None
    assert plain.hash != sample.hash


def test_short_corpora_still_have_both_splits() -> None:
    tokens = np.arange(100, dtype=np.int32)
    found = [
        set(
            sample_tokens(CORPUS, tokens, n_tokens=20, sequence_length=10, split=split).ids.flatten().tolist()
        )
        for split in ("evaluation", "calibration")
    ]
    assert not found[0] & found[1]


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the library: what is asked of it, how rows are joined, and its errors in one line."""
    import types

    asked: list[tuple[object, ...]] = []

    def load(name: str, config: str | None, split: str) -> dict[str, list[str]]:
        asked.append((name, config, split))
        if name == "no/net":
            raise ConnectionError("unreachable\nsecond line")
        return {"text": ["one", "two"]}

    library = types.SimpleNamespace(load_dataset=load, disable_progress_bars=lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert load_corpus("hf:a/b:c:validation").text == "one\n\ntwo"
    assert load_corpus("hf:a/b").name == "hf:a/b"
    assert asked == [("a/b", "c", "validation"), ("a/b", None, "test")]
    with pytest.raises(ConfigError, match="is there a network") as caught:
        load_corpus("hf:no/net")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install datasets"):
        load_corpus("hf:a/b")


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
        (990, 30, "has 720 tokens for evaluation"),
    ],
)
def test_bad_sizes(n_tokens: int, sequence_length: int, words: str) -> None:
    tokens = np.arange(1000, dtype=np.int32)
    with pytest.raises(ConfigError, match=words):
        sample_tokens(CORPUS, tokens, n_tokens=n_tokens, sequence_length=sequence_length)
