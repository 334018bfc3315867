"""Published plans priced with their published layer times, through the command line.

Oracle: the objectives and layer times in the log of LLM-PQ's evaluation on cluster 3 (OPT-30B, 3 T4, a V100).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dse.graph.cache import load_graph
from dse.graph.units import units_of
from studies.catalogue import resolve_model
from tests.command_line import Run

PRECISION = {3: "int3_row", 4: "int4_row", 8: "int8_row", 16: "fp16"}
DEVICE = {"T4": "nvidia_t4", "V100": "nvidia_v100_sxm2_32gb"}
NAMES = {"T4": ["t4/0", "t4/1", "t4/2"], "V100": ["v100/0"]}
ACTIVATIONS = "fp16/fp16"


def write_times(path: Path, rows: list[tuple[str, int, str, int, int, float]]) -> Path:
    """Write (GPU, bits, phase, batch, tokens, seconds) as the tool reads them."""
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("device", "precision", "phase", "batch", "tokens", "seconds"))
        for gpu, bits, phase, *numbers in rows:
            writer.writerow((DEVICE[gpu], f"{PRECISION[bits]}/{ACTIVATIONS}", phase, *numbers))
    return path


def write_plan(path: Path, order: list[str], counts: list[list[int]], bits: list[int], micro: int) -> Path:
    """Write a published plan: devices in order, and how many layers of each have which bits."""
    units = [unit.name for unit in units_of(load_graph(resolve_model("opt-30b")), "block")]
    free = {kind: list(names) for kind, names in NAMES.items()}
    stages, assigned, first = [], {}, 0
    for gpu, of_bits in zip(order, counts, strict=True):
        n_layers = sum(of_bits)
        stages.append(
            {"devices": [free[gpu].pop(0)], "tensor_parallel": 1, "layers": [first, first + n_layers]}
        )
        chosen = np.repeat(bits, of_bits)
        for unit, width in zip(units[first : first + n_layers], chosen, strict=True):
            assigned[unit] = {"weights": PRECISION[int(width)], "activations": "fp16", "kv": "fp16"}
        first += n_layers
    document = {
        "model": "opt-30b",
        "cluster": "llmpq_cluster3",
        "stages": stages,
        "assignment": assigned,
        "prefill_micro_batch": micro,
        "decode_micro_batch": micro,
    }
    path.write_text(json.dumps(document))
    return path


def priced(dse: Run, *words: object) -> dict[str, Any]:
    """The document of a plan that can be priced."""
    code, out, err = dse(*words, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("name", ["LLM-PQ", "PipeEdge", "Uniform4"])
def test_recorded_plans(name: str, shared_data: Path, tmp_path: Path, dse: Run) -> None:
    data = json.loads((shared_data / "planning" / "llmpq_cluster3.json").read_text())
    micro, bits = data["prefill_micro_batch"], data["bits"]
    rows = [
        (gpu, width, phase, micro, tokens, seconds)
        for gpu, phases in data["layer_time_s"].items()
        for phase, tokens in (("prefill", 512), ("decode", 562))
        for width, seconds in zip(bits, phases[phase], strict=True)
    ]
    recorded = next(entry for entry in data["recorded"] if entry["plan"] == name)
    order = data["orders"][recorded["order"]]
    plan = write_plan(tmp_path / "plan.json", order, recorded["counts_per_stage"], bits, micro)
    times = write_times(tmp_path / "times.csv", rows)
    sizes = ("--batch", 32, "--prompt", 512, "--output", 100)
    words = ("cost", "opt-30b", "--cluster", "llmpq_cluster3", "--plan", plan, *sizes)
    found = priced(dse, *words, "--layer-times", times)
    assert found["provenance"] == "measured"
    layer_s = {
        (gpu, phase): np.array(table[phase])
        for gpu, table in data["layer_time_s"].items()
        for phase in ("prefill", "decode")
    }
    inner = range(1, len(order) - 1)  # neither embedding nor output head
    for s in inner:
        counts = np.array(recorded["counts_per_stage"][s])
        for phase in ("prefill", "decode"):
            expected = float(counts @ layer_s[order[s], phase])
            assert found[f"stage_{phase}_s"][s] == pytest.approx(expected, rel=1e-9)
    # The recorded objective has no embedding, head or network, which take more time here; and it ends with
    # the pipeline empty, one round's drain later than the last token.
    assert found["total_s"] == pytest.approx(recorded["objective_round_s"], rel=0.03)
    assert found["total_interval_s"][0] <= found["total_s"] <= found["total_interval_s"][1]


def test_measured_tables_and_the_regression(shared_data: Path, tmp_path: Path, dse: Run) -> None:
    """The measured tables hold one length only: as they are they price it, a regression is refused."""
    times = shared_data / "planning" / "opt30b_layer_times.json"
    recorded_s = json.loads(times.read_text())["optimum_ms"]["V100_first"]["eta2"][1] / 1e3
    counts = [[0, 0, 7, 11], [0, 0, 10, 0], [0, 0, 10, 0], [0, 0, 10, 0]]
    order = ["V100", "T4", "T4", "T4"]
    plan = write_plan(tmp_path / "plan.json", order, counts, [3, 4, 8, 16], 2)
    document = json.loads(plan.read_text()) | {"decode_micro_batch": 8}
    plan.write_text(json.dumps(document))
    sizes = ("--batch", 32, "--prompt", 512, "--output", 100)
    words = ("cost", "opt-30b", "--cluster", "llmpq_cluster3", "--plan", plan, *sizes, "--layer-times", times)
    found = priced(dse, *words, "--layer-time-tokens", 512)
    assert found["stage_prefill_s"][1] == pytest.approx(10 * 40.5836165e-3)
    assert found["stage_decode_s"][1] == pytest.approx(10 * 7.886072993e-3)
    assert found["total_s"] == pytest.approx(recorded_s, rel=0.03)
    code, _, error = dse(*words, "--layer-time-model", "regression", "--json")
    assert code == 2
    assert "regression needs 5 different workloads" in error
    code, _, error = dse(*words, "--json")
    assert code == 2
    assert "no measurements around" in error
    code, _, error = dse(*words, "--json", "--layer-time-model", "regresion")
    assert "did you mean 'regression'" in error
