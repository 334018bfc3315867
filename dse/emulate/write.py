"""A quantized model as a Hugging Face folder: its weights expanded to the model's dtype."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dse.emulate.model import EmulatedModel, TensorFormats
from dse.errors import ConfigError

RECORD = "quantization.json"
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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("exists and is not empty; give another folder", file=str(folder))
    try:
        with model.applied(TensorFormats(weights=formats.weights, first_layer=formats.first_layer)):
            model.module.save_pretrained(str(folder))
        for pattern in _COPIED:
            for file in model.folder.glob(pattern):
                shutil.copy(file, folder / file.name)
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)
        (folder / RECORD).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=str(folder)) from error
