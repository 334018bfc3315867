"""A model whose weights stay on disk: one block is in memory at a time.

The module is built without weights; ``resident`` reads what lies under some module paths from the checkpoint
and lets go of it again, so that checkpoints larger than memory can be calibrated, quantized and evaluated.
Sources: the safetensors files of a Hugging Face folder, or a GGUF file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dse.content import content_hash
from dse.emulate import attention
from dse.emulate.checkpoint import checkpoint_hash
from dse.emulate.device import chosen_device
from dse.emulate.gguf_source import GgufSource
from dse.emulate.model import DTYPES, EmulatedModel
from dse.emulate.weights import WeightStore
from dse.errors import ConfigError
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit

_META = torch.device("meta")


class TensorSource(Protocol):
    """Where weights come from."""

    def read(self, name: str) -> Tensor:
        """Return a parameter, in memory of its own."""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a parameter."""


class SafetensorsSource:
    """The safetensors files of a folder; a file is mapped only while something is read from it."""

    def __init__(self, folder: Path) -> None:
        """Read the names.

        Raises:
            ConfigError: no safetensors files, or an index that names files which are not there.
        """
        from safetensors import safe_open

        index = folder / "model.safetensors.index.json"
        self._file_of: dict[str, Path] = {}
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._file_of = {name: folder / file for name, file in names.items()}
        else:
            for file in sorted(folder.glob("*.safetensors")):
                with safe_open(str(file), framework="pt") as handle:
                    self._file_of |= dict.fromkeys(handle.keys(), file)
        missing = next((file for file in self._file_of.values() if not file.is_file()), None)
        if not self._file_of or missing is not None:
            raise ConfigError("has no safetensors files to read block by block", file=str(missing or folder))

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str) -> Tensor:
        """Return a parameter; the mapping of its file, which counts as memory, is gone afterwards."""
        from safetensors import safe_open

        with safe_open(str(self._file_of[name]), framework="pt") as handle:
            found: Tensor = handle.get_tensor(name)
            return found.clone()


class StreamedModel(EmulatedModel):
    """An emulated model of which only ``resident`` parts have weights.

    Attributes:
        source: where weights come from; ends: parameter names of the embedding and of the output head.
    """

    source: TensorSource
    ends: tuple[str, str]
    _tied: bool

    @classmethod
    def open(
        cls,
        folder: Path,
        graph: OperatorGraph,
        units: tuple[Unit, ...],
        *,
        dtype: str = "bfloat16",
        device: torch.device | None = None,
        gguf: Path | None = None,
    ) -> StreamedModel:
        """Build the module without weights.

        Args:
            folder: Hugging Face folder with safetensors; graph: its operators; units: what assignments name.
            dtype: "bfloat16" or "float32".
            device: where blocks go; None takes the best there is.
            gguf: holds the weights instead; the folder is its description (``describe_gguf``).

        Raises:
            ConfigError: unknown dtype, no weights, or weights that the architecture misses.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"unknown dtype '{dtype}'", path="quality.dtype", value=dtype, allowed=DTYPES)
        place = device or chosen_device()
        module = _empty_module(folder, DTYPES[dtype])
        for part in module.modules():
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, buffer.to(place))
        source: TensorSource = SafetensorsSource(folder) if gguf is None else GgufSource(gguf, module)
        model = cls(
            module,
            folder,
            graph,
            units,
            checkpoint=checkpoint_hash(folder) if gguf is None else content_hash(["gguf", folder.name]),
            dtype=dtype,
            n_threads=torch.get_num_threads(),
            store=WeightStore(0.0),
            device=place,
        )
        model.source = source
        model.ends = _end_names(module)
        model._tied = bool(module.config.tie_word_embeddings)
        model.check_complete()
        return model

    @contextmanager
    def resident(self, prefixes: Sequence[str]) -> Iterator[None]:
        """Have the weights under module paths in memory inside the context."""
        names = self._names(prefixes)
        read: dict[str, Tensor] = {}
        try:
            for name in names:
                stored = self._stored_name(name)
                if stored not in read:
                    read[stored] = self.source.read(stored).to(self.device, DTYPES[self.dtype])
                self._put(name, read[stored])
            read.clear()
            yield
        finally:
            for name in names:
                self._put(name, None)
            self.store.clear()

    def before_blocks(self) -> list[str]:
        """Return the parameters outside of blocks that the first block's input may need."""
        return [name for name in self.outside_blocks() if name != self.ends[1]]

    def after_blocks(self) -> list[str]:
        """Return the parameters outside of blocks that the logits of the last block's output may need."""
        return [name for name in self.outside_blocks() if name != self.ends[0]]

    def held(self, prefixes: Sequence[str]) -> dict[str, Tensor]:
        """Return the weights under module paths by parameter name, as they are in memory now."""
        found = ((name, self.module.get_parameter(name)) for name in self._names(prefixes))
        return {name: parameter.data for name, parameter in found}

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Use these weights, by parameter name."""
        for name, tensor in tensors.items():
            self._put(name, tensor)

    def logits_behind(self, hidden: Tensor) -> Tensor:
        """Return the logits (batch, length, vocabulary) of what the last block returned."""
        with self.replayed([hidden] * len(self.layers)):
            logits: Tensor = self.module(inputs_embeds=hidden, use_cache=False).logits
            return logits

    def outside_blocks(self) -> list[str]:
        """Return the paths of all parameters that belong to no transformer block."""
        prefixes = tuple(
            block.prefix.format(layer=layer) + "." for layer, block in enumerate(self.graph.block_of_layer)
        )
        names = (name for name, _ in self.module.named_parameters(remove_duplicate=False))
        return [name for name in names if not name.startswith(prefixes)]

    def check_complete(self) -> None:
        """Refuse a checkpoint that lacks weights of its architecture.

        Raises:
            ConfigError: names the first that is missing.
        """
        for name, _ in self.module.named_parameters(remove_duplicate=False):
            self._stored_name(name)

    def _names(self, prefixes: Sequence[str]) -> list[str]:
        """Return the parameters under module paths."""
        names = (name for name, _ in self.module.named_parameters(remove_duplicate=False))
        return [name for name in names if any(name == p or name.startswith(f"{p}.") for p in prefixes)]

    def _stored_name(self, name: str) -> str:
        """Return the name in the checkpoint: of tied weights it may hold only one."""
        if name in self.source:
            return name
        if self._tied and name in self.ends:
            other = next((end for end in self.ends if end in self.source), None)
            if other is not None:
                return other
        raise ConfigError(f"lacks weights of its architecture: {name}", file=str(self.folder))

    def _put(self, name: str, tensor: Tensor | None) -> None:
        path, _, leaf = name.rpartition(".")
        owner = self.module.get_submodule(path)
        if tensor is None:
            tensor = torch.empty(getattr(owner, leaf).shape, dtype=DTYPES[self.dtype], device=_META)
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))


def _end_names(module: Any) -> tuple[str, str]:
    """Return the parameter names of the embedding and of the output head, "" where there is none."""
    paths = {id(part): path for path, part in module.named_modules()}
    ends = (module.get_input_embeddings(), module.get_output_embeddings())
    embedding, head = ("" if end is None else f"{paths[id(end)]}.weight" for end in ends)
    return embedding, head


def _empty_module(folder: Path, dtype: torch.dtype) -> Any:
    """Return the module with parameters on no device; buffers (rotary frequencies) are real."""
    import transformers
    from accelerate import init_empty_weights

    attention.register()
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        with init_empty_weights(include_buffers=False):
            module = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention.IMPLEMENTATION
            )
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cannot build the model ({reason})", file=str(folder)) from error
    module.eval()
    module.requires_grad_(requires_grad=False)
    return module
