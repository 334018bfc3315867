"""From the numbers of all passes to operators whose sizes are polynomials, checked off the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dse.errors import ConfigError
from dse.graph.cross import with_source
from dse.graph.extent import Extent
from dse.graph.fit import GRID, Probe, exact
from dse.graph.measure import Measured, product_node
from dse.graph.merge import Group
from dse.graph.operator import Attention, Experts, Op
from dse.graph.record import Recording
from dse.graph.skeleton import Skeleton
from dse.graph.source import ModelSource

Point = tuple[int, int, int]

SIZES = (
    "flop",
    "vector_flop",
    "read_elements",
    "write_elements",
    "kv_read_elements",
    "kv_write_elements",
    "state_elements",
)


@dataclass(frozen=True)
class Traced:
    """What all passes said of one group: its operator without context, and its incoming edges."""

    op: Op
    part: int | None
    edges: dict[int | None, Extent]
    is_result: bool


def solve(
    skeleton: Skeleton,
    first: Recording,
    groups: list[Group],
    names: list[tuple[int | None, str]],
    measured: dict[Point, list[Measured]],
    live: list[tuple[Extent, Extent | None]],
    probe: Probe,
    source: ModelSource,
) -> list[Traced]:
    """Turn the numbers of all passes into operators with polynomial sizes.

    ``live`` are the live elements of each group, in all passes and apart for decode steps.
    """
    fitter = probe.fitter()
    owned: dict[str, str] = {}
    traced = []
    for position, group in enumerate(groups):
        part, name = names[position]
        of_group = {point: passes[position] for point, passes in measured.items()}
        fit = _Fit(of_group, probe, fitter, name, source.name)
        full_name = name if part is None else f"{skeleton.original_prefix(part)}.{name}"
        parameters, tied_to = _parameters(skeleton, first, group, full_name, owned)
        sizes: dict[str, Any] = {size: fit.number(size) for size in SIZES}
        op = Op(
            name=name,
            kind=group.kind,
            parameters=parameters,
            weight_shape=_weight_shape(first, group),
            has_bias=group.kind == "linear" and len(_parameter_names(first, group)) > 1,
            input_shapes=fit.shapes("input_shapes"),
            output_shapes=fit.shapes("output_shapes"),
            attention=_geometry(skeleton, first, group, part),
            tied_to=tied_to,
            experts=_experts(first, group),
            live_elements=live[position][0],
            step_live_elements=live[position][1],
            **sizes,
        )
        traced.append(Traced(op, part, fit.edges(), of_group[probe.grid[0]].is_result))
    return traced if skeleton.source_tokens is None else with_source(skeleton, traced)


class _Fit:
    """Polynomials of one operator from its numbers at all points."""

    def __init__(
        self,
        passes: dict[Point, Measured],
        probe: Probe,
        fitter: Callable[[tuple[int, ...]], Extent],
        name: str,
        source: str,
    ) -> None:
        self._passes = passes
        self._probe = probe
        self._fitter = fitter
        self._name = name
        self._source = source

    def number(self, size: str) -> Extent:
        """Return the polynomial of a size field."""
        return self._fit({point: getattr(numbers, size) for point, numbers in self._passes.items()}, size)

    def shapes(self, name: str) -> tuple[tuple[Extent, ...], ...]:
        """Return the polynomials of all dimensions of all tensors of a shape field."""
        every: dict[Point, tuple[tuple[int, ...], ...]] = {
            point: getattr(numbers, name) for point, numbers in self._passes.items()
        }
        ranks = {tuple(len(shape) for shape in every[point]) for point in self._probe.grid}
        if len(ranks) != 1:
            raise ConfigError(f"operator '{self._name}' has tensors of changing rank", file=self._source)
        for point in self._probe.checks:  # a decode step may leave out the dimension of positions
            if tuple(len(shape) for shape in every[point]) not in ranks:
                del every[point]
        return tuple(
            tuple(
                self._fit({point: shapes[t][d] for point, shapes in every.items()}, name) for d in range(rank)
            )
            for t, rank in enumerate(next(iter(ranks)))
        )

    def edges(self) -> dict[int | None, Extent]:
        """Return the elements that come from each group."""
        sources = dict.fromkeys(key for numbers in self._passes.values() for key in numbers.edges)
        return {
            key: self._fit({p: numbers.edges.get(key, 0) for p, numbers in self._passes.items()}, "edges")
            for key in sources
        }

    def _fit(self, values: dict[Point, int], what: str) -> Extent:
        extent = self._fitter(tuple(values[point] for point in self._probe.grid))
        for point in self._probe.checks:
            if point in values and exact(extent, *point) != values[point]:
                raise ConfigError(
                    f"operator '{self._name}' is not supported: its {what} is not a polynomial "
                    f"in (batch, query, context), {values[point]} at {point}",
                    file=self._source,
                )
        return extent


def _parameter_names(recording: Recording, group: Group) -> list[str]:
    """Return the parameters that a group reads, in order."""
    found: dict[str, None] = {}
    for index in group.members:
        for value_index in recording.nodes[index].inputs:
            name = recording.values[value_index].parameter
            if name is not None:
                found[name] = None
    return list(found)


def _parameters(
    skeleton: Skeleton, recording: Recording, group: Group, full_name: str, owned: dict[str, str]
) -> tuple[int, str | None]:
    """Return the elements of the parameters that a group owns, and who owns its shared matrix."""
    sizes = {name: parameter.numel() for name, parameter in skeleton.model.named_parameters()}
    count, tied_to = 0, None
    for name in _parameter_names(recording, group):
        if name in owned:
            tied_to = owned[name]
        else:
            owned[name] = full_name
            count += sizes[name]
    return count, tied_to


def _weight_shape(recording: Recording, group: Group) -> tuple[int, int] | None:
    """Return (outputs, inputs) of a linear, (rows, width) of an embedding, else None."""
    if group.kind == "linear":
        node = product_node(recording, group)
        values = [recording.values[index] for index in node.inputs]
        if isinstance(node.detail, Experts) or node.name == "convolution":
            weight, inner = values[1], values[0].shape[-1 if node.detail is not None else 1]
            if node.detail is None:
                inner = weight.numel // weight.shape[0]
            return weight.numel // inner, inner
        left, right = values[-2], values[-1]
        weight = right if right.parameter is not None else left
        inner = left.shape[-1]
        rows, columns = weight.shape[-2:]
        if weight is right:
            return columns, inner
        return rows, inner
    if group.kind == "embedding":
        node = next(recording.nodes[i] for i in group.members if recording.nodes[i].category == "embedding")
        rows, width = recording.values[node.inputs[0]].shape
        return rows, width
    return None


def _geometry(skeleton: Skeleton, recording: Recording, group: Group, part: int | None) -> Attention | None:
    """Return the head geometry of an attention operator, from the shapes of its tensors."""
    if group.kind != "attention":
        return None
    window = None if part is None else skeleton.window(part)
    known = product_node(recording, group).detail
    if isinstance(known, Attention):
        keys = recording.values[product_node(recording, group).inputs[1]]
        if keys.cached == "keys":  # before the module repeated them for each query head
            known = replace(known, n_kv_heads=recording.values[keys.base].shape[1])
        return replace(known, window=window, latent_dim=_latent_dim(skeleton, recording, group, part))
    batch, query, context = GRID[0]
    keys = next(
        recording.values[recording.values[v].base]
        for index in group.members
        for v in recording.nodes[index].inputs
        if recording.values[v].cached == "keys"
    )
    scores = recording.values[product_node(recording, group).outputs[0]]
    return Attention(
        n_heads=scores.numel // (batch * query * context),
        n_kv_heads=keys.shape[1],
        head_dim=keys.shape[3],
        window=window,
    )


def _latent_dim(skeleton: Skeleton, recording: Recording, group: Group, part: int | None) -> int | None:
    """Return the cached elements of a token where they are not its keys and values themselves."""
    read = [recording.values[index].cached for index in product_node(recording, group).inputs]
    layout = None if part is None else skeleton.layout(part).attention
    if layout is None or "keys" in read:
        return None
    return sum(heads * width for heads, width in layout)


def _experts(recording: Recording, group: Group) -> Experts | None:
    """Return the routing of a grouped product."""
    details = (recording.nodes[index].detail for index in group.members)
    return next((detail for detail in details if isinstance(detail, Experts)), None)
