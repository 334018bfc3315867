"""A real model whose weights, activations and KV cache are rounded to the formats of an assignment.

The module is loaded once. Applying an assignment swaps pointers to rounded weights, hooks the inputs of those
linears whose activations are quantized, and sets the cache format of attention modules; leaving the context
restores the full-precision model. The arithmetic of the products stays that of the module's dtype, so what is
emulated is rounding; the accumulation of an integer kernel is a runtime policy (``integer_products.py``).

Formats "fp32", "fp16" and "bf16" mean "as the module holds it": they are never applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dse.content import content_hash
from dse.emulate import attention
from dse.emulate.attention import CacheFormat
from dse.emulate.checkpoint import checkpoint_hash
from dse.emulate.corpus import TokenSample
from dse.emulate.device import chosen_device, device_label
from dse.emulate.weights import WeightStore
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat, Precision
from dse.graph.operator import OperatorGraph
from dse.graph.units import Unit
from dse.plan import Assignment
from dse.quantize.fake import fake_quantize

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
STORE_BYTES = 0.9e9  # the demo model in bfloat16 at four precisions

PathFormats = tuple[tuple[str, NumberFormat], ...]


@dataclass(frozen=True)
class TensorFormats:
    """What an assignment means for the modules: only what differs from full precision, sorted by path.

    Attributes:
        weights, activations: (path of a linear, format); kv: (path of an attention module, format).
        first_layer: first transformer block that differs, None where nothing does.
    """

    weights: PathFormats = ()
    activations: PathFormats = ()
    kv: PathFormats = ()
    first_layer: int | None = None

    @property
    def is_reference(self) -> bool:
        """Whether nothing is quantized."""
        return not (self.weights or self.activations or self.kv)

    def under(self, prefix: str) -> TensorFormats:
        """Return the formats of what lies under a module path."""

        def part(formats: PathFormats) -> PathFormats:
            return tuple(item for item in formats if item[0].startswith(f"{prefix}."))

        return TensorFormats(part(self.weights), part(self.activations), part(self.kv), self.first_layer)

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return {"weights": {path: format name}, ...}: equal for equal emulated models."""
        parts = {"weights": self.weights, "activations": self.activations, "kv": self.kv}
        return {role: {path: fmt.name for path, fmt in part} for role, part in parts.items()}


class EmulatedModel:
    """A loaded model; make one with ``load``.

    Attributes:
        folder: the checkpoint; ``hash``: its content hash.
        graph: its operator graph; ``units``: what assignments name.
        module: the transformers module, always in full precision outside of ``applied``.
        dtype: "bfloat16" or "float32"; ``n_threads``: threads of torch, which the last bits depend on.
        device: where weights and activations are.
    """

    def __init__(
        self,
        module: Any,
        folder: Path,
        graph: OperatorGraph,
        units: tuple[Unit, ...],
        *,
        checkpoint: str,
        dtype: str,
        n_threads: int,
        store: WeightStore,
        device: torch.device,
    ) -> None:
        """Wrap a loaded module; use ``load``."""
        self.module = module
        self.folder = folder
        self.graph = graph
        self.units = units
        self.hash = checkpoint
        self.dtype = dtype
        self.n_threads = n_threads
        self.store = store
        self.device = device
        self._unit_of = {unit.name: unit for unit in units}
        self._applied = False
        self._n_forwards = 0
        self._rounded_columns: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        folder: Path,
        graph: OperatorGraph,
        units: tuple[Unit, ...],
        *,
        dtype: str = "bfloat16",
        n_threads: int | None = None,
        store_bytes: float = STORE_BYTES,
        device: torch.device | None = None,
    ) -> EmulatedModel:
        """Load a checkpoint.

        Args:
            folder: Hugging Face folder with weights.
            graph: its operator graph, whose block prefixes and operator names are module paths.
            units: what assignments name.
            dtype: "bfloat16" or "float32".
            n_threads: threads for torch in this process; None keeps the present number.
            store_bytes: memory for rounded weights.
            device: where to run; None takes the best there is.

        Raises:
            ConfigError: unknown dtype, no weights, or weights that do not load.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"unknown dtype '{dtype}'", path="quality.dtype", value=dtype, allowed=DTYPES)
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        checkpoint = checkpoint_hash(folder)
        place = device or chosen_device()
        module = _load_module(folder, DTYPES[dtype]).to(place)
        return cls(
            module,
            folder,
            graph,
            units,
            checkpoint=checkpoint,
            dtype=dtype,
            n_threads=torch.get_num_threads(),
            store=WeightStore(store_bytes),
            device=place,
        )

    @property
    def device_label(self) -> str:
        """Where it runs, as results say it."""
        return device_label(self.device)

    def tokens(self, sample: TokenSample) -> Tensor:
        """Return the ids of a sample (n_sequences, length), int64, where the model is."""
        return torch.as_tensor(sample.ids, dtype=torch.int64, device=self.device)

    def became(self, change: object) -> None:
        """Note that weights changed: results and rounded weights of before are of another model.

        Args:
            change: JSON-ready description, part of the hash from now on.
        """
        self.hash = content_hash([self.hash, change])
        self.store.clear()
        self._rounded_columns.clear()

    def prepare(
        self,
        weights: Mapping[tuple[str, str], Tensor],
        change: object,
        exact_columns: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Use these values, instead of rounding to nearest, for (path of a linear, format name).

        Args:
            weights: values in the layout of each module's weight; kept until the weights change.
            change: JSON-ready description of how they were made, part of the hash from now on.
            exact_columns: by path, inputs of a linear that are never quantized.
        """
        self.hash = content_hash([self.hash, change])
        self.store.pin(weights)
        for path, columns in (exact_columns or {}).items():
            rounded = torch.ones(self._n_inputs(path), dtype=torch.bool, device=self.device)
            rounded[list(columns)] = False
            self._rounded_columns[path] = rounded

    def rounded_columns(self, path: str) -> Tensor | None:
        """Return which inputs (channels,) bool of a linear are ever rounded, None where all are."""
        return self._rounded_columns.get(path)

    def formats_of(self, assignment: Assignment) -> TensorFormats:
        """Return what an assignment means for the modules; units that it leaves out stay in full precision.

        Raises:
            ConfigError: it names a unit that the model does not have.
        """
        choices = []
        for name, precision in assignment.items:
            if name not in self._unit_of:
                raise ConfigError(
                    f"unknown unit '{name}'", path="assignment", value=name, allowed=self._unit_of
                )
            choices.append((self._unit_of[name], precision))
        return self.expand(choices)

    def expand(self, choices: Iterable[tuple[Unit, Precision]]) -> TensorFormats:
        """Return the formats of the modules for precisions of units of any granularity."""
        weights: dict[str, NumberFormat] = {}
        activations: dict[str, NumberFormat] = {}
        kv: dict[str, NumberFormat] = {}
        layers = []
        for unit, precision in choices:
            quantized = False
            for op in unit.ops:
                path = self.path(unit.layer, op)
                for role, fmt in ((weights, precision.weights), (activations, precision.activations)):
                    if not fmt.is_float:
                        role[path] = fmt
                        quantized = True
            if not precision.kv.is_float:
                kv |= {self._attention_path(unit.layer, op): precision.kv for op in unit.attention_ops}
                quantized = quantized or bool(unit.attention_ops)
            if quantized:
                layers.append(unit.layer)
        return TensorFormats(
            weights=tuple(sorted(weights.items())),
            activations=tuple(sorted(activations.items())),
            kv=tuple(sorted(kv.items())),
            first_layer=min(layers, default=None),
        )

    def path(self, layer: int, op: str) -> str:
        """Return the module path of an operator of a transformer block."""
        return f"{self.graph.block_of_layer[layer].prefix.format(layer=layer)}.{op}"

    def block_path(self, layer: int) -> str:
        """Return the module path of a transformer block."""
        return self.graph.block_of_layer[layer].prefix.format(layer=layer)

    def linear_paths(self, within: str = "") -> list[str]:
        """Return the paths of all units' linears under a module path, by default of all."""
        paths = (self.path(unit.layer, op) for unit in self.units for op in unit.ops)
        return [path for path in paths if not within or path.startswith(f"{within}.")]

    def linear(self, path: str) -> tuple[nn.Module, bool]:
        """Return a linear module and whether its weight is stored as (inputs, outputs).

        Raises:
            ConfigError: no such module, or one that is no plain linear.
        """
        try:
            found: nn.Module = self.module.get_submodule(path)
        except AttributeError:
            raise ConfigError(f"{self.folder.name} has no module '{path}' to quantize") from None
        if isinstance(found, nn.Linear):
            return found, False
        if type(found).__name__ == "Conv1D":
            return found, True
        raise ConfigError(f"cannot emulate '{path}': {type(found).__name__} is not a plain linear")

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer blocks, in order."""
        blocks = enumerate(self.graph.block_of_layer)
        return [self.module.get_submodule(block.prefix.format(layer=layer)) for layer, block in blocks]

    def logits(self, ids: Tensor) -> Tensor:
        """Return the next-token logits (batch, length, vocabulary) of ids (batch, length), in the dtype."""
        self._n_forwards += 1
        with torch.inference_mode():
            return self.module(input_ids=ids, use_cache=False).logits

    @contextmanager
    def applied(self, formats: TensorFormats) -> Iterator[None]:
        """Run with quantized tensors inside the context, which does not nest.

        Raises:
            ConfigError: a cache format for a model whose attention cannot take one.
        """
        if self._applied:
            raise RuntimeError("formats are applied already")
        self._applied = True
        n_before = self._n_forwards
        try:
            with ExitStack() as undo:
                for path, fmt in formats.weights:
                    self._swap_weight(path, fmt, undo)
                last = _LastInput()
                for path, fmt in formats.activations:
                    hook = partial(_round_input, last, fmt, self._rounded_columns.get(path))
                    undo.callback(self.linear(path)[0].register_forward_pre_hook(hook).remove)
                caches = [self._set_cache(path, fmt, undo) for path, fmt in formats.kv]
                yield
                if self._n_forwards > n_before and any(cache.n_reads == 0 for cache in caches):
                    raise ConfigError(f"the attention of {self.folder.name} cannot take a quantized KV cache")
        finally:
            self._applied = False

    @contextmanager
    def replayed(self, outputs: Sequence[object]) -> Iterator[None]:
        """Let the first ``len(outputs)`` blocks return recorded outputs instead of computing."""
        layers = self.layers[: len(outputs)]
        try:
            for layer, output in zip(layers, outputs, strict=True):
                layer.forward = partial(_replay, output)
            yield
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)

    @contextmanager
    def recorded(self) -> Iterator[list[object]]:
        """Collect what each transformer block returns, in order, for ``replayed``."""
        outputs: list[object] = []
        hooks = [layer.register_forward_hook(partial(_record, outputs)) for layer in self.layers]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _swap_weight(self, path: str, fmt: NumberFormat, undo: ExitStack) -> None:
        linear, inputs_first = self.linear(path)
        original = linear.weight
        rounded = self.store.get(path, original, fmt, inputs_first=inputs_first)
        undo.callback(setattr, linear, "weight", original)
        linear.weight = rounded

    def _n_inputs(self, path: str) -> int:
        linear, inputs_first = self.linear(path)
        return linear.weight.shape[0 if inputs_first else 1]

    def _set_cache(self, path: str, fmt: NumberFormat, undo: ExitStack) -> CacheFormat:
        module = self.module.get_submodule(path)
        cache = CacheFormat()
        cache.fmt = fmt
        undo.callback(setattr, module, "dse_cache", None)
        module.dse_cache = cache
        return cache

    def _attention_path(self, layer: int, op: str) -> str:
        """Return the attention module of an attention operator: the nearest parent that is a module."""
        prefix = self.graph.block_of_layer[layer].prefix.format(layer=layer)
        parts = op.split(".")
        while parts:
            path = ".".join([prefix, *parts])
            try:
                self.module.get_submodule(path)
            except AttributeError:
                parts.pop()
            else:
                return path
        raise ConfigError(f"{self.folder.name} has no attention module for '{prefix}.{op}'")


class _LastInput:
    """The last rounded input: linears that read the very same tensor in one format share the work."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.fmt: NumberFormat | None = None
        self.rounded: Tensor | None = None


def _round_input(
    last: _LastInput, fmt: NumberFormat, columns: Tensor | None, _: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Round the first argument (..., channels) of a linear, with scales from the values at hand (dynamic).

    ``columns`` (channels,) says which are rounded, packed together; None for all.
    """
    x = args[0]
    if columns is not None:
        return (on_columns(x, columns, lambda part: fake_quantize(part, fmt)), *args[1:])
    if last.rounded is None or last.given is not x or last.fmt != fmt:
        last.given, last.fmt, last.rounded = x, fmt, fake_quantize(x, fmt)
    return (last.rounded, *args[1:])


def on_columns(x: Tensor, columns: Tensor | None, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``x`` (..., channels) with ``change`` of the columns (channels,) bool, packed; None: of all."""
    if columns is None:
        return change(x)
    mixed = x.clone()
    mixed[..., columns] = change(x[..., columns])
    return mixed


def _replay(output: object, *_: object, **__: object) -> object:
    return output


def _record(outputs: list[object], _: nn.Module, __: object, output: object) -> None:
    outputs.append(output)


def _load_module(folder: Path, dtype: torch.dtype) -> Any:
    """Load with the attention that can quantize its cache, or with the model's own where it has none."""
    import transformers

    attention.register()
    reason = ""
    for implementation in (attention.IMPLEMENTATION, "eager"):
        try:
            with _quiet():
                module = transformers.AutoModelForCausalLM.from_pretrained(
                    str(folder), dtype=dtype, attn_implementation=implementation, local_files_only=True
                )
        except (ValueError, KeyError, TypeError, RuntimeError, OSError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        module.eval()
        module.requires_grad_(requires_grad=False)
        return module
    raise ConfigError(f"cannot load the model ({reason})", file=str(folder))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the loader's own progress bars, which would break ours."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
