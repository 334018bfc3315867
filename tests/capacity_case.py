"""A small case of capacity planning: a 1B model, two kinds of machines, a short load."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml

from dse.capacity.arrivals import ClassLoad, generate
from dse.capacity.lengths import Independent, Lognormal
from dse.capacity.load import Load, RequestClass, ServiceLevel
from dse.capacity.market import Market
from dse.capacity.options import Building, ReplicaOption, replica_options, uniform_bits
from dse.formats.grammar import parse_precision
from dse.graph.cache import load_graph
from dse.graph.units import units_of
from hardware_specs.catalogue import Catalogue, parse_catalogue
from hardware_specs.loader import load_device, load_runtime
from studies.catalogue import resolve_model

CATALOGUE = {
    "name": "two_kinds",
    "description": "a small and a large machine",
    "source": "an example",
    "nodes": [
        {
            "name": "small",
            "device": "nvidia_l4",
            "count": 1,
            "available": {"value": 6, "unit": "count", "source": "an example"},
            "price": {"on_demand": {"value": 0.7, "unit": "USD/h", "source": "an example"}},
        },
        {
            "name": "large",
            "device": "nvidia_a100_sxm_80gb",
            "count": 2,
            "available": {"value": 4, "unit": "count", "source": "an example"},
            "price": {
                "on_demand": {"value": 3.0, "unit": "USD/h", "source": "an example"},
                "spot": {"value": 1.0, "unit": "USD/h", "source": "an example"},
            },
        },
    ],
    "network": {
        "name": "ethernet",
        "kind": "scale_out",
        "bandwidth": {"value": 100, "unit": "Gbit/s", "source": "an example"},
        "latency": {"value": 5, "unit": "us", "source": "an example"},
    },
}
STUDY = {
    "name": "small_case",
    "model": "llama-3.2-1b",
    "catalogue": "two.yaml",
    "precisions": ["bf16", "int8_row"],
    "load": {
        "rate_per_s": 8,
        "duration_s": 60,
        "classes": [
            {
                "name": "chat",
                "prompt": {"lognormal": {"mean": 400, "cv": 0.8, "most": 3000}},
                "output": {"lognormal": {"mean": 80, "cv": 0.6, "most": 400}},
                "levels": [
                    {"metric": "ttft", "percentile": 90, "limit_s": 0.8},
                    {"metric": "tpot", "percentile": 90, "limit_s": 0.03},
                ],
            }
        ],
    },
    "ask": ["headroom", "quantization"],
}


@cache
def catalogue() -> Catalogue:
    """The two kinds of machines."""
    return parse_catalogue(CATALOGUE, "two.yaml", load_device)


@cache
def options() -> tuple[ReplicaOption, ...]:
    """Replicas of the model on them."""
    graph, runtime = load_graph(resolve_model("llama-3.2-1b")), load_runtime("vllm")
    units = units_of(graph, "block", runtime.ties)
    bits = uniform_bits(units, [parse_precision("bf16"), parse_precision("int8_row")])
    found, _ = replica_options(Building(graph, units, catalogue(), runtime, 4096), bits)
    return tuple(found)


@cache
def load(rate_per_s: float = 8.0, ttft_s: float = 0.8) -> Load:
    """A minute of conversations."""
    levels = (ServiceLevel("ttft", 90, ttft_s), ServiceLevel("tpot", 90, 0.03))
    lengths = Independent(Lognormal(400, 0.8, 3000), Lognormal(80, 0.6, 400))
    return generate([ClassLoad(RequestClass("chat", levels), rate_per_s, lengths)], 60.0, 0)


@cache
def market(rate_per_s: float = 8.0) -> Market:
    """What can be bought for it."""
    return Market.of(catalogue(), options(), load(rate_per_s))


def write_case(folder: Path) -> Path:
    """Write the study and its catalogue as files, and return the study's."""
    (folder / "two.yaml").write_text(yaml.safe_dump(CATALOGUE))
    study = folder / "case.yaml"
    study.write_text(yaml.safe_dump(STUDY))
    return study
