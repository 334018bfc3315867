"""Content addressing and safe files: canonical JSON, hashes, atomic writes."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def canonical_json(document: Any) -> str:
    """Return JSON with sorted keys and no spaces, the same text for the same content in every process."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_hash(document: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of the canonical JSON of ``document``."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()[:16]


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a crash leaves either the old content or the new, never a part.

    The data goes to a temporary file in the same folder, is synced to disk, and then renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode() if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def cache_dir() -> Path:
    """Return the user's cache folder: $DSE_CACHE, else $XDG_CACHE_HOME/dse, else ~/.cache/dse."""
    explicit = os.environ.get("DSE_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dse"
