"""Running a model under an assignment's formats and a runtime policy together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from torch import Tensor

from dse.emulate.cache_policy import attended
from dse.emulate.integer_products import has_integer_product, integer_products
from dse.emulate.model import EmulatedModel, PathFormats, TensorFormats
from dse.emulate.phases import Phase, applied_by_position
from dse.emulate.static_activations import Ranges, measured_ranges, static_activations
from dse.errors import ConfigError
from dse.formats.precision import NumberFormat
from dse.policy import CachePolicy, RuntimePolicy


@contextmanager
def applied_with(
    model: EmulatedModel,
    formats: TensorFormats,
    policy: RuntimePolicy,
    ranges: Ranges | None = None,
    *,
    within: str = "",
) -> Iterator[None]:
    """Run with quantized tensors under a policy inside the context, which does not nest.

    Args:
        model: the model; formats: what the assignment means.
        policy: of the runtime; ranges: of static activations, see ``calibrated_ranges``.
        within: module path that ``formats`` are limited to, "" for the whole model.

    Raises:
        ConfigError: static activations without ranges, or what the parts refuse.
    """
    with ExitStack() as stack:
        held = formats
        if policy.static_activations:
            held = replace(held, activations=())
        if policy.phases:
            held = replace(held, weights=(), activations=())
        if policy.integer_products:
            held = _without_integer_products(held)
        stack.enter_context(model.applied(held))
        if policy.integer_products:
            stack.enter_context(integer_products(model, formats))
        if policy.static_activations:
            if ranges is None:
                raise ConfigError("static activation ranges need calibration tokens")
            stack.enter_context(static_activations(model, formats.activations, ranges))
        if policy.phases:
            stack.enter_context(applied_by_position(model, phases_of(model, formats, policy, within)))
        if policy.cache != CachePolicy():
            stack.enter_context(attended(model, policy.cache))
        yield


def phases_of(
    model: EmulatedModel, formats: TensorFormats, policy: RuntimePolicy, within: str = ""
) -> list[Phase]:
    """Return the phases of a policy over all linears under a module path, the assignment's formats first."""
    paths = model.linear_paths(within)
    current = replace(formats, kv=())
    phases = [Phase(0, current)]
    for step in policy.phases:
        current = replace(
            current,
            weights=_overridden(current.weights, paths, step.weights),
            activations=_overridden(current.activations, paths, step.activations),
        )
        phases.append(Phase(step.start, current))
    return phases


def calibrated_ranges(model: EmulatedModel, ids: Tensor) -> Ranges:
    """Return the input range of every linear of the blocks over tokens ``ids`` (n_sequences, length)."""
    return measured_ranges(model, tuple(model.linear_paths()), ids)


def _without_integer_products(formats: TensorFormats) -> TensorFormats:
    """Return the formats of what ``integer_products`` leaves to rounded values."""
    weights = tuple(item for item in formats.weights if not has_integer_product(formats, item[0]))
    activations = tuple(item for item in formats.activations if not has_integer_product(formats, item[0]))
    return replace(formats, weights=weights, activations=activations)


def _overridden(known: PathFormats, paths: list[str], fmt: NumberFormat | None) -> PathFormats:
    if fmt is None:
        return known
    return () if fmt.is_float else tuple((path, fmt) for path in sorted(paths))
