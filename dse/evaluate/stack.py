"""Operators of all block templates in one list, and which unit each belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dse.errors import ConfigError
from dse.evaluate.cost_table import Array
from dse.graph.operator import Attention, Op, OperatorGraph
from dse.graph.units import Unit


@dataclass(frozen=True)
class OpStack:
    """Operators of every block template, stacked; each is listed once however often its block repeats.

    Attributes:
        linears, attentions, others: the operators; ``other_of_template`` (T, E) is 1 where the element-wise
            operator belongs to the template.
        linear_of_unit, attention_of_unit: (U, O) and (U, A), 1 where the unit holds the operator.
        template_of_layer: (L,) index of each layer's block template.
    """

    linears: tuple[Op, ...]
    attentions: tuple[Attention, ...]
    others: tuple[Op, ...]
    linear_of_unit: Array
    attention_of_unit: Array
    other_of_template: Array
    template_of_layer: NDArray[np.intp]

    @classmethod
    def of(cls, graph: OperatorGraph, units: Sequence[Unit]) -> OpStack:
        """Stack the operators of a graph.

        Raises:
            ConfigError: a linear or attention operator belongs to no unit, or to more than one.
        """
        linears: list[Op] = []
        attentions: list[Attention] = []
        others: list[Op] = []
        places: list[dict[str, tuple[str, int]]] = []
        owners: list[int] = []
        for template, block in enumerate(graph.blocks):
            place: dict[str, tuple[str, int]] = {}
            for op in block.ops:
                if op.kind == "linear":
                    place[op.name] = ("linear", len(linears))
                    linears.append(op)
                elif op.attention is not None:
                    place[op.name] = ("attention", len(attentions))
                    attentions.append(op.attention)
                else:
                    others.append(op)
                    owners.append(template)
            places.append(place)
        template_of_layer = np.zeros(graph.n_layers, dtype=np.intp)
        for template, block in enumerate(graph.blocks):
            template_of_layer[list(block.layers)] = template
        member = {"linear": np.zeros((len(units), len(linears)))}
        member["attention"] = np.zeros((len(units), len(attentions)))
        _fill(member, units, places, template_of_layer)
        other_of_template = np.zeros((len(graph.blocks), len(others)))
        other_of_template[owners, np.arange(len(others))] = 1.0
        return cls(
            tuple(linears),
            tuple(attentions),
            tuple(others),
            member["linear"],
            member["attention"],
            other_of_template,
            template_of_layer,
        )


def _fill(
    member: dict[str, Array],
    units: Sequence[Unit],
    places: list[dict[str, tuple[str, int]]],
    template_of_layer: NDArray[np.intp],
) -> None:
    """Set the entries of units and check that every operator of every layer is held once."""
    held: list[set[str]] = [set() for _ in template_of_layer]
    for index, unit in enumerate(units):
        place = places[template_of_layer[unit.layer]]
        for name in (*unit.ops, *unit.attention_ops):
            if name not in place:
                raise ConfigError(
                    f"unit '{unit.name}' names an operator that layer {unit.layer} lacks",
                    value=name,
                    allowed=place,
                )
            if name in held[unit.layer]:
                raise ConfigError(f"operator '{name}' of layer {unit.layer} is in more than one unit")
            held[unit.layer].add(name)
            kind, column = place[name]
            member[kind][index, column] = 1.0
    for layer, names in enumerate(held):
        missing = places[template_of_layer[layer]].keys() - names
        if missing:
            raise ConfigError(f"operator '{min(missing)}' of layer {layer} is in no unit")
