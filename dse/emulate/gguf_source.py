"""The weights of a GGUF file, one parameter at a time: mapped, expanded to bfloat16 and let go of again.

Names and layouts are those of transformers' own reading of the file (it undoes llama.cpp's permutation of
queries and keys, for instance), so that every tensor is what converting the whole file would have written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dse.errors import ConfigError

STORED_DTYPE = torch.bfloat16
_UNTOUCHED = ("token_embd.weight", "output.weight")  # the largest, whose layout every architecture keeps
_ROWS = 4096


@dataclass(frozen=True)
class _Stored:
    """A tensor in the file: where, in which type, and the shape of its elements or of its rows of bytes."""

    name: str
    offset: int
    kind: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class GgufSource:
    """The tensors of a GGUF file by parameter name; nothing of the file stays mapped between reads."""

    def __init__(self, path: Path, module: Any) -> None:
        """Read the table of tensors.

        Args:
            path: the file; module: the transformers model whose parameters it holds, weights not needed.

        Raises:
            ConfigError: the file is damaged, or of an architecture without known names.
        """
        from gguf import GGUFReader
        from transformers import modeling_gguf_pytorch_utils as loading

        self._path = path
        try:
            reader = GGUFReader(str(path))
            architecture = str(reader.fields["general.architecture"].contents())
            _check_reader(architecture)
            processor = loading.TENSOR_PROCESSORS.get(architecture, loading.TensorProcessor)
            self._processor = processor(config=module.config.to_dict())
            self._names: dict[str, str] = loading.get_gguf_hf_weights_map(module, self._processor)
        except (ValueError, KeyError, IndexError, OSError, NotImplementedError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"cannot be read block by block ({reason})", file=str(path)) from error
        self._parts: dict[str, list[_Stored]] = {}
        for found in reader.tensors:
            # experts are one parameter made of several tensors, named without the ending
            parameter = self._names.get(found.name) or self._names.get(found.name.removesuffix(".weight"))
            if parameter is not None:
                data = found.data
                part = _Stored(found.name, found.data_offset, found.tensor_type, data.shape, data.dtype)
                self._parts.setdefault(parameter, []).append(part)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def read(self, name: str) -> Tensor:
        """Return a parameter in bfloat16.

        Raises:
            ConfigError: a type that package gguf cannot expand.
        """
        made: dict[str, dict[str, Tensor]] = {"tensors": {}}
        for part in self._parts[name]:
            data = np.memmap(self._path, part.dtype, "r", part.offset, part.shape)
            if part.name in _UNTOUCHED:
                return self._by_rows(part, data)
            result = self._processor.process(
                weights=self._expanded(part, data),
                name=part.name,
                tensor_key_mapping=self._names,
                parsed_parameters=made,
            )
            if result.name is not None:  # else the processor has put it into its place
                made["tensors"][name] = torch.as_tensor(np.copy(result.weights), device="cpu")
        return made["tensors"][name].to(STORED_DTYPE)

    def _by_rows(self, part: _Stored, data: NDArray[Any]) -> Tensor:
        """Expand some rows at a time: all of a vocabulary in float32 would be twice what is kept."""
        parts = [
            torch.as_tensor(self._expanded(part, data[start : start + _ROWS]), device="cpu").to(STORED_DTYPE)
            for start in range(0, len(data), _ROWS)
        ]
        return torch.cat(parts)

    def _expanded(self, part: _Stored, data: NDArray[Any]) -> NDArray[np.float32]:
        from gguf import dequantize

        try:
            return dequantize(data, part.kind)
        except NotImplementedError as error:
            raise ConfigError(
                f"'{part.name}' is stored as {part.kind.name}, which cannot be expanded", file=str(self._path)
            ) from error


def _check_reader(architecture: str) -> None:
    """Refuse the few architectures that newer versions of transformers convert by other rules."""
    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
    except ImportError:  # a version that has one reader for all
        return
    if is_gguf_arch_supported(architecture):
        raise NotImplementedError(f"architecture '{architecture}' is only converted as a whole")


def expanded_bytes(path: Path) -> int:
    """Return the bytes of all tensors of a GGUF file in bfloat16, 0 for a file that cannot be read."""
    from gguf import GGUFReader

    try:
        return STORED_DTYPE.itemsize * sum(int(found.n_elements) for found in GGUFReader(str(path)).tensors)
    except (ValueError, KeyError, IndexError, OSError):
        return 0
