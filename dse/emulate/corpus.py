"""Text to measure on: the embedded corpus or a user's file, as token sequences drawn by a seed.

The embedded corpus is the text of ``pydoc_data.topics`` (the Python language reference as the interpreter's
help shows it), which every Python installation carries. Its hash is part of every result, because the text
changes between Python versions.

Protocol: no beginning-of-sequence token is added, sequences do not overlap, and every fourth sequence of the
corpus belongs to the calibration split, the others to the evaluation split.
"""

from __future__ import annotations

import hashlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dse.content import cache_dir, content_hash, write_atomic
from dse.errors import ConfigError

Split = Literal["evaluation", "calibration"]
Tokens = NDArray[np.int32]
CALIBRATION_EVERY = 4


@dataclass(frozen=True)
class Corpus:
    """A text; ``hash`` is the start of its SHA-256."""

    name: str
    text: str
    hash: str


@dataclass(frozen=True)
class TokenSample:
    """Sequences of a corpus.

    Attributes:
        ids: (n_sequences, sequence_length) int32.
        corpus, corpus_hash, split, seed: where they come from; ``hash``: content hash of the ids.
    """

    ids: Tokens
    corpus: str
    corpus_hash: str
    split: Split
    seed: int
    hash: str

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all."""
        return int(self.ids.size)

    @property
    def sequence_length(self) -> int:
        """Tokens of one sequence."""
        return int(self.ids.shape[1])


def load_corpus(path: Path | None = None) -> Corpus:
    """Return the user's text file (UTF-8), or the embedded corpus for None.

    Raises:
        ConfigError: the file is missing, not UTF-8 text, or blank.
    """
    if path is None:
        return _embedded()
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the corpus must be UTF-8 text ({error.reason})", file=str(path)) from error
    except OSError as error:
        raise ConfigError(f"cannot read the corpus ({error.strerror})", file=str(path)) from error
    if not text.strip():
        raise ConfigError("the corpus is empty", file=str(path))
    return Corpus(path.name, text, _text_hash(text))


def tokenize(corpus: Corpus, folder: Path) -> Tokens:
    """Return the token ids (n,) of a corpus under the tokenizer of a model folder; cached on disk.

    Raises:
        ConfigError: the folder has no tokenizer.
    """
    files = [
        file for file in sorted(folder.glob("*token*")) + sorted(folder.glob("vocab*")) if file.is_file()
    ]
    if not files:
        raise ConfigError("has no tokenizer files", file=str(folder))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    place = cache_dir() / "tokens" / f"{content_hash([corpus.hash, *digests])}.npy"
    if place.is_file():
        cached: Tokens = np.load(place, allow_pickle=False)
        return cached
    ids = np.asarray(_encode(corpus.text, folder), dtype=np.int32)
    buffer = io.BytesIO()
    np.save(buffer, ids, allow_pickle=False)
    write_atomic(place, buffer.getvalue())
    return ids


def sample_tokens(
    corpus: Corpus,
    tokens: Tokens,
    *,
    n_tokens: int,
    sequence_length: int = 512,
    seed: int = 0,
    split: Split = "evaluation",
) -> TokenSample:
    """Draw sequences of one split, in an order that the seed decides.

    Args:
        corpus: where the tokens come from.
        tokens: (n,) all tokens of the corpus, from ``tokenize``.
        n_tokens: how many to draw, a multiple of ``sequence_length``.
        sequence_length: tokens of a sequence.
        seed: of the draw; a larger draw with the same seed contains the smaller.
        split: "evaluation" or "calibration"; they are disjoint for every seed.

    Raises:
        ConfigError: sizes that are not positive or do not divide, or a corpus that is too short.
    """
    for name, value in (("sequence_length", sequence_length), ("n_tokens", n_tokens)):
        least = 2 if name == "sequence_length" else 1
        if value < least:
            raise ConfigError(f"must be at least {least}, but got {value}", path=f"quality.{name}")
    if n_tokens % sequence_length:
        raise ConfigError(
            f"must be a multiple of the sequence length {sequence_length}, but got {n_tokens}",
            path="quality.n_tokens",
        )
    n_sequences = len(tokens) // sequence_length
    index = np.arange(n_sequences)
    is_calibration = index % CALIBRATION_EVERY == CALIBRATION_EVERY - 1
    index = index[is_calibration if split == "calibration" else ~is_calibration]
    wanted = n_tokens // sequence_length
    if wanted > len(index):
        raise ConfigError(
            f"corpus '{corpus.name}' has {len(index) * sequence_length} tokens for {split} in sequences of "
            f"{sequence_length}, but {n_tokens} are asked for",
            path="quality.n_tokens",
        )
    chosen = np.random.default_rng(seed).permutation(index)[:wanted]
    ids = np.stack([tokens[i * sequence_length : (i + 1) * sequence_length] for i in chosen]).astype(np.int32)
    digest = hashlib.sha256(ids.tobytes() + str(ids.shape).encode()).hexdigest()[:16]
    return TokenSample(ids, corpus.name, corpus.hash, split, seed, digest)


def _embedded() -> Corpus:
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Corpus(f"pydoc_data.topics of Python {version}", text, _text_hash(text))


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encode(text: str, folder: Path) -> list[int]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more precise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cannot load the tokenizer ({reason})", file=str(folder)) from error
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
