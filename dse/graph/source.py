"""Where a model comes from (a folder, a GGUF file or a hub id): its configuration and its weights."""

from __future__ import annotations

import inspect
import json
import socket
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dse.content import content_hash
from dse.errors import ConfigError

GGUF_MAGIC = b"GGUF"
VOLATILE_KEYS = ("_name_or_path", "transformers_version", "architectures")


@dataclass(frozen=True)
class ModelSource:
    """An architecture and, where there are any, its weights.

    Attributes:
        name: display name.
        config: the Hugging Face configuration as a plain mapping, ``model_type`` included.
        weights: folder with ``*.safetensors`` files and their ``config.json``, None without weights.
        gguf: a GGUF checkpoint that holds the weights, None otherwise.
        note: one sentence on what is missing or where it comes from.
        checkpoint: name of a checkpoint that can be fetched for this architecture, None without one.
        source_tokens: length of the encoder's input that an encoder-decoder is traced for; None takes the
            length that the configuration names (``n_positions``), or 512.
    """

    name: str
    config: dict[str, Any] = field(hash=False)
    weights: Path | None = None
    gguf: Path | None = None
    note: str = ""
    checkpoint: str | None = None
    source_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.config.get("model_type"), str):
            raise ConfigError(
                "is missing (it names the architecture, e.g. llama)", file=self.name, path="model_type"
            )

    @cached_property
    def config_hash(self) -> str:
        """Content hash of what determines the architecture; provenance keys do not count."""
        config = {k: v for k, v in self.config.items() if k not in VOLATILE_KEYS}
        if self.source_tokens is not None:
            config["source_tokens"] = self.source_tokens
        return content_hash(config)

    @property
    def has_weights(self) -> bool:
        """Whether the model can be run, not only priced."""
        return self.weights is not None or self.gguf is not None


def load_source(path_or_hub_id: str | Path) -> ModelSource:
    """Return the source behind a local folder, a ``.gguf`` file or a hub id such as ``org/name``.

    Raises:
        ConfigError: nothing is there, or what is there cannot be read.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.suffix.lower() == ".gguf":
        return _from_gguf(path)
    text = str(path_or_hub_id)
    if _looks_like_hub_id(text):
        return _from_hub(text)
    raise ConfigError(f"no such model '{text}': neither a folder, nor a .gguf file, nor a hub id (org/name)")


def _looks_like_hub_id(text: str) -> bool:
    """Whether ``text`` has the form ``org/name``; a path that merely does not exist has not."""
    parts = text.split("/")
    return len(parts) == 2 and all(parts) and not text.startswith((".", "~")) and " " not in text


def _from_folder(folder: Path) -> ModelSource:
    """Read ``config.json`` of a Hugging Face folder; weights are there if any ``*.safetensors`` file is."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ConfigError("is not a model folder: it has no config.json", file=str(folder))
    try:
        config = json.loads(config_file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not JSON ({error})", file=str(config_file)) from error
    if not isinstance(config, dict):
        raise ConfigError("must be a JSON object", file=str(config_file))
    if not isinstance(config.get("model_type"), str):
        raise ConfigError("is missing (it names the architecture)", file=str(config_file), path="model_type")
    weights = folder if any(folder.glob("*.safetensors")) else None
    note = "" if weights else "the folder has no safetensors weights: architecture only"
    return ModelSource(folder.resolve().name, config, weights=weights, note=note)


def _from_gguf(path: Path) -> ModelSource:
    """Read the header of a GGUF file; its metadata becomes a Hugging Face configuration."""
    if not path.is_file():
        raise ConfigError("no such file", file=str(path))
    with path.open("rb") as handle:
        magic = handle.read(4)
    if magic != GGUF_MAGIC:
        raise ConfigError(f"is not a GGUF file: it starts with {magic!r} instead of b'GGUF'", file=str(path))
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        config = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"is a damaged or unsupported GGUF file ({reason})", file=str(path)) from error
    plain = {key: value for key, value in dict(config).items() if value is not None}
    if not isinstance(plain.get("model_type"), str):
        raise ConfigError("is a GGUF file without an architecture", file=str(path))
    if "head_dim" not in plain:
        plain |= _head_dim(path, plain["model_type"])
    plain |= _window(path, plain["model_type"])
    return ModelSource(path.stem, plain, gguf=path)


def _head_dim(path: Path, model_type: str) -> dict[str, int]:
    """Return the width of a head where transformers' reading of the header leaves it out (Qwen 3)."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "head_dim" not in inspect.signature(CONFIG_MAPPING[model_type]).parameters:
        return {}
    named = _numbers(path, ".attention.key_length")
    return {"head_dim": named[0]} if named else {}


def _window(path: Path, model_type: str) -> dict[str, int | None]:
    """Return the sliding window that the header names, and that there is none where Mistral's names none.

    transformers does not read it, and would take the window of the first Mistral 7B.
    """
    named = _numbers(path, ".attention.sliding_window")
    if named:
        return {"sliding_window": named[0]}
    return {"sliding_window": None} if model_type == "mistral" else {}


def _numbers(path: Path, ending: str) -> list[int]:
    """Return the header's numbers whose keys end so."""
    from gguf import GGUFReader

    found = GGUFReader(path).fields.items()
    return [
        int(f.contents()) for name, f in found if name.endswith(ending) and not name.startswith("general.")
    ]


def _hub_answers() -> bool:
    """Whether a connection to the hub can be made; behind a proxy only the hub's client can tell."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(proxy in urllib.request.getproxies() for proxy in ("https", "all")):
        return True
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=5):
            return True
    except OSError:
        return False


def _from_hub(hub_id: str) -> ModelSource:
    """Fetch the configuration of a hub id, or read it from the local hub cache."""
    from transformers import AutoConfig

    try:
        # The hub's client would retry for half a minute before it says that there is no network.
        config = AutoConfig.from_pretrained(hub_id, local_files_only=not _hub_answers()).to_dict()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot get the configuration of hub model '{hub_id}': it is unknown, gated, or the hub cannot "
            "be reached; pass a local folder with its config.json instead"
        ) from error
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str))
    return ModelSource(hub_id, plain, note="configuration from the hub: architecture only")
