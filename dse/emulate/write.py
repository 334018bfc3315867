"""A quantized model as a Hugging Face folder: its weights expanded to the model's dtype."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dse.emulate.model import EmulatedModel, TensorFormats
from dse.emulate.streamed import StreamedModel
from dse.errors import ConfigError

RECORD = "quantization.json"
INDEX = "model.safetensors.index.json"
_COPIED = ("*token*", "vocab*", "merges.txt", "generation_config.json", "chat_template*")


def write_dequantized(
    model: EmulatedModel, formats: TensorFormats, folder: Path, document: dict[str, Any]
) -> None:
    """Write the weights that the formats hold, in the model's dtype, with tokenizer and a record.

    Any program that loads Hugging Face folders runs these values; activation and cache formats are not in
    them, the record says what they were.

    Args:
        model: prepared; formats: whose weights are written.
        folder: must not exist or be empty; document: JSON-ready, written to ``quantization.json``.

    Raises:
        ConfigError: the folder is not empty, or cannot be written.
    """
    check_empty(folder)
    try:
        with model.applied(TensorFormats(weights=formats.weights, first_layer=formats.first_layer)):
            model.module.save_pretrained(str(folder))
        _finish(model, folder, document)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(folder)) from error


class BlockWriter:
    """Writes the same folder block by block, one safetensors file each."""

    def __init__(self, model: StreamedModel, folder: Path) -> None:
        """Begin; the folder must not exist or be empty."""
        check_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._model, self._folder = model, folder
        self._file_of: dict[str, str] = {}
        self._size_bytes = 0

    def add(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of one part by parameter name; a head that is tied is stored as the embedding."""
        tied = self._model.ends[1] if self._model.module.config.tie_word_embeddings else None
        self._write(
            f"model-{part}.safetensors", {name: tensor for name, tensor in tensors.items() if name != tied}
        )

    def finish(self, document: dict[str, Any]) -> None:
        """Write the index, configuration, tokenizer and record."""
        index = {"metadata": {"total_size": self._size_bytes}, "weight_map": self._file_of}
        (self._folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        self._model.module.config.save_pretrained(str(self._folder))
        _finish(self._model, self._folder, document)

    def _write(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        held = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(held, str(self._folder / file), metadata={"format": "pt"})
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", file=str(self._folder)) from error
        self._file_of |= dict.fromkeys(held, file)
        self._size_bytes += sum(tensor.nbytes for tensor in held.values())


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ConfigError: it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("exists and is not empty; give another folder", file=str(folder))


def _finish(model: EmulatedModel, folder: Path, document: dict[str, Any]) -> None:
    for pattern in _COPIED:
        for file in model.folder.glob(pattern):
            shutil.copy(file, folder / file.name)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    (folder / RECORD).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
