"""Text to measure on: the embedded corpus, a user's file or a Hugging Face data set, as token sequences.

The embedded corpus is the text of ``pydoc_data.topics`` (the Python language reference as the interpreter's
help shows it), which every Python installation carries. Its hash is part of every result, because the text
changes between Python versions.

Protocol: the tokens of a corpus are cut into regions of 512 (shorter ones for a short corpus), every fourth
of which belongs to the calibration split, the others to the evaluation split, whatever the length of the
sequences that are drawn. The regions of a split are joined and cut into sequences that do not overlap; one
that is longer than a region, or no part of it, runs on into the split's next region. A beginning-of-sequence
token is put first where it is asked for; the sequence keeps its length.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dse.content import cache_dir, content_hash, write_atomic
from dse.errors import ConfigError

Split = Literal["evaluation", "calibration"]
Tokens = NDArray[np.int32]
CALIBRATION_EVERY = 4
REGION_TOKENS, LEAST_REGIONS = 512, 16
DATASET_PREFIX = "hf:"


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
        bos: the token that begins every sequence, None without one.
    """

    ids: Tokens
    corpus: str
    corpus_hash: str
    split: Split
    seed: int
    hash: str
    bos: int | None = None

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all."""
        return int(self.ids.size)

    @property
    def sequence_length(self) -> int:
        """Tokens of one sequence."""
        return int(self.ids.shape[1])


def load_corpus(source: str | Path | None = None) -> Corpus:
    """Return a corpus.

    Args:
        source: None for the embedded corpus; the path of a UTF-8 text file, which serves any corpus that is
            one (WikiText-2); or ``hf:OWNER/NAME[:CONFIG[:SPLIT]]``, the column "text" of a data set of the
            Hugging Face hub (split "test" by default), for those with the package ``datasets`` and a network.

    Raises:
        ConfigError: the file is missing, not UTF-8 text, or blank; the data set cannot be had.
    """
    if source is None:
        return _embedded()
    if str(source).startswith(DATASET_PREFIX):
        return _dataset(str(source))
    path = Path(source).expanduser()
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
    bos: int | None = None,
) -> TokenSample:
    """Draw sequences of one split, in an order that the seed decides.

    Args:
        corpus: where the tokens come from.
        tokens: (n,) all tokens of the corpus, from ``tokenize``.
        n_tokens: how many to draw, a multiple of ``sequence_length``.
        sequence_length: tokens of a sequence.
        seed: of the draw; a larger draw with the same seed contains the smaller.
        split: "evaluation" or "calibration"; they are disjoint for every seed and all lengths.
        bos: a token to begin every sequence with.

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
    stream = _split(tokens, split)
    own = sequence_length - (bos is not None)
    n_sequences, wanted = len(stream) // own, n_tokens // sequence_length
    if wanted > n_sequences:
        raise ConfigError(
            f"corpus '{corpus.name}' has {n_sequences * sequence_length} tokens for {split} in sequences of "
            f"{sequence_length}, but {n_tokens} are asked for",
            path="quality.n_tokens",
        )
    chosen = np.random.default_rng(seed).permutation(n_sequences)[:wanted]
    ids = np.stack([stream[i * own : (i + 1) * own] for i in chosen]).astype(np.int32)
    if bos is not None:
        ids = np.concatenate([np.full((len(ids), 1), bos, np.int32), ids], axis=1)
    digest = hashlib.sha256(ids.tobytes() + str(ids.shape).encode()).hexdigest()[:16]
    return TokenSample(ids, corpus.name, corpus.hash, split, seed, digest, bos)


def bos_token(folder: Path) -> int:
    """Return the beginning-of-sequence token of a model folder's tokenizer.

    Raises:
        ConfigError: it has none, or there is no tokenizer.
    """
    token: int | None = _tokenizer(folder).bos_token_id
    if token is None:
        raise ConfigError("the tokenizer has no beginning-of-sequence token", file=str(folder))
    return token


def _split(tokens: Tokens, split: Split) -> Tokens:
    """Return the tokens (n,) of one split: its regions, joined."""
    size = max(1, min(REGION_TOKENS, len(tokens) // LEAST_REGIONS))
    n_regions = len(tokens) // size
    regions = tokens[: n_regions * size].reshape(n_regions, size)
    is_calibration = np.arange(n_regions) % CALIBRATION_EVERY == CALIBRATION_EVERY - 1
    return regions[is_calibration if split == "calibration" else ~is_calibration].reshape(-1)


def _embedded() -> Corpus:
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Corpus(f"pydoc_data.topics of Python {version}", text, _text_hash(text))


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encode(text: str, folder: Path) -> list[int]:
    ids: list[int] = _tokenizer(folder)(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more precise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cannot load the tokenizer ({reason})", file=str(folder)) from error


def _dataset(source: str) -> Corpus:
    """Read ``hf:OWNER/NAME[:CONFIG[:SPLIT]]``; rows are joined by blank lines, as is usual for WikiText."""
    name, _, rest = source.removeprefix(DATASET_PREFIX).partition(":")
    config, _, split = rest.partition(":")
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError(f"corpus '{source}' needs the package 'datasets' (pip install datasets)")
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "test")
        text = "\n\n".join(rows["text"])
    except Exception as error:  # hub, network and file errors of several libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cannot load corpus '{source}' (is there a network?): {reason}") from error
    if not text.strip():
        raise ConfigError(f"corpus '{source}' is empty")
    return Corpus(source, text, _text_hash(text))
