"""What a device file may say beyond its numbers, and the one line that each mistake there gives."""

import pytest
import yaml

from dse.errors import UnsupportedOnDevice
from hardware_specs.loader import load_device
from tests.unit.hardware_specs.test_hardware_files import DEVICE, changed


def test_what_a_full_file_may_also_say(write):
    document = yaml.safe_load(DEVICE)
    source = {"source": "s1"}
    document |= {
        "availability": "announced",
        "missing": {"power.static": "not published"},
        "sparsity": {"statement": "2:4", "speedup": {"value": 2, "unit": "ratio", **source}, **source},
        "pairs": [
            {"weights": "int4", "activations": "fp16", "support": "emulated", "compute_as": "fp16", **source}
        ],
        "arithmetic": [{"kind": "fp16", "per_cycle": {"value": 512, "unit": "count", **source}}],
    }
    document["memory"].append(
        {
            "name": "ssd",
            "kind": "NVMe",
            "weights": True,
            "scope": "node",
            "via": "host",
            "capacity": {"value": 1, "unit": "TB", **source},
            "bandwidth": {"value": 7, "unit": "GB/s", **source},
        }
    )
    document["links"][0] |= {
        "direction": "bidirectional",
        "topology": {"kind": "ring", "neighbours": {"value": 2, "unit": "count", **source}, **source},
    }
    spec = load_device(write(document))
    assert spec.availability == "announced"
    assert spec.sparsity.speedup == 2
    assert spec.rate_flop_per_s("fp16") == 2e12  # the speed-up is in no rate
    assert (spec.pairs[0].support, spec.pairs[0].compute_as) == ("emulated", "fp16")
    assert spec.flop_per_cycle == {"fp16": 512}
    l2, dram, ssd = spec.memory
    assert (l2.weights, l2.kv) == (False, False)
    assert (dram.weights, dram.kv, dram.scope) == (True, True, "device")
    assert (ssd.weights, ssd.kv, ssd.scope, ssd.via) == (True, False, "node", "host")
    assert spec.links[0].bandwidth_bytes_per_s == 0.5e9  # half of what both directions add to
    assert spec.links[0].peer_bandwidth_bytes_per_s == 0.25e9


def test_a_device_without_known_memory_is_refused_where_memory_is_needed():
    spec = load_device("hailo_8")
    assert spec.known_main_memory is None
    with pytest.raises(
        UnsupportedOnDevice, match="hailo_8: no main memory: it has no external memory"
    ) as error:
        _ = spec.main_memory
    assert "\n" not in str(error.value)


MISTAKES = {
    "incomplete without a word": (
        changed("availability", value="incomplete"),
        "an incomplete device needs 'missing': what lacks, and why",
    ),
    "unknown availability": (
        changed("availability", value="sold"),
        "availability: 'sold' is not allowed (",
    ),
    "a date that is none": (
        changed("price", "date", value="May 2026"),
        "price.date: String should match pattern",
    ),
    "torus of the wrong size": (
        changed(
            "links",
            0,
            value={
                **yaml.safe_load(DEVICE)["links"][0],
                "max_devices": {"value": 16, "unit": "count", "source": "s1"},
                "topology": {"kind": "torus", "dims": [4, 5], "source": "s1"},
            },
        ),
        "links.0.topology.dims: the dims hold 20 devices, but max_devices is 16",
    ),
    "dims of a switch": (
        changed("links", 0, "topology", value={"kind": "switch", "dims": [4], "source": "s1"}),
        "links.0.topology: only a torus or mesh has dims, but this is a switch",
    ),
    "emulated pair without a kind": (
        changed(
            "pairs",
            value=[{"weights": "int4", "activations": "fp16", "support": "emulated", "source": "s1"}],
        ),
        "pairs.0: emulated pairs, and only they, name the kind they run as in 'compute_as'",
    ),
    "pair emulated by a kind that is not native": (
        changed(
            "pairs",
            value=[
                {
                    "weights": "int4",
                    "activations": "fp16",
                    "support": "emulated",
                    "compute_as": "int8",
                    "source": "s1",
                }
            ],
        ),
        "pairs.0.compute_as: 'int8' is not a native kind of this device",
    ),
    "unsupported pair without a reason": (
        changed(
            "pairs",
            value=[{"weights": "int4", "activations": "fp16", "support": "unsupported", "source": "s1"}],
        ),
        "pairs.0: an unsupported pair needs a 'reason'",
    ),
    "arithmetic of an unknown kind": (
        changed(
            "arithmetic",
            value=[{"kind": "fp61", "per_cycle": {"value": 2, "unit": "count", "source": "s1"}}],
        ),
        "arithmetic: unknown key 'fp61' (did you mean 'fp16'?",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_clear_line(mistake, refused):
    content, expected = MISTAKES[mistake]
    assert expected in refused(content)
