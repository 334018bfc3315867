"""``dse plan`` for whole layouts, as its users meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.command_line import Outcome, Run

BASE = ("plan", "llama-3.1-8b", "--workload", "chat", "--precisions", "bf16,int4_g64_asym")
QUICK = ("--time-limit", "2")


@pytest.fixture
def dse(dse: Run) -> Run:
    """Plan the same model with some more words."""

    def run(*words: object) -> Outcome:
        return dse(*BASE, *words)

    return run


def document(dse: Run, *words: str) -> dict[str, Any]:
    code, out, err = dse(*words, *QUICK, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_groups_have_as_many_devices_as_their_degree(dse: Run) -> None:
    got = document(dse, "--cluster", "llmpq_cluster3", "--tensor-parallel", "auto")
    alone = document(dse, "--cluster", "llmpq_cluster3", "--tensor-parallel", "1", "--chunk", "auto")
    for found in (got, alone):
        assert all(len(stage["devices"]) == stage["tensor_parallel"] for stage in found["stages"])
        assert found["solver"]["bound"] <= found["solver"]["value"]
    # the devices are disjoint, and more freedom is no slower
    devices = [device for stage in got["stages"] for device in stage["devices"]]
    assert len(devices) == len(set(devices)) == got["predicted"]["devices"]
    assert got["predicted"]["total_s"] == pytest.approx(got["solver"]["value"], rel=1e-6)


def test_replicas_have_devices_of_their_own(dse: Run) -> None:
    got = document(dse, "--cluster", "llmpq_cluster2", "--replicas", "1", "--tensor-parallel", "auto")
    assert len(got["replicas"]) == 1
    got = document(dse, "--cluster", "llmpq_cluster9", "--replicas", "2")
    devices = [d for replica in got["replicas"] for stage in replica["stages"] for d in stage["devices"]]
    assert len(got["replicas"]) == 2
    assert len(devices) == len(set(devices))
    assert sum(replica["batch"] for replica in got["replicas"]) == 8
    assert sum(replica["share_frac"] for replica in got["replicas"]) == pytest.approx(1)


def test_pools_share_no_device_and_say_how_to_serve(dse: Run) -> None:
    got = document(dse, "--cluster", "llmpq_cluster3", "--pools", "separate", "--objective", "ttft")
    roles = {replica["role"] for replica in got["replicas"]}
    assert roles == {"prefill", "decode"}
    assert got["pools"] == "separate"
    assert any("kv_producer" in line for line in got["serving"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--tensor-parallel", "3"), "cannot be shared out to 3 devices"),
        (("--tensor-parallel", "two"), "is not a number"),
        (("--replicas", "0"), "is not a number"),
        (("--pools", "seperate"), "did you mean 'separate'?"),
        (("--chunk", "x"), "is not a number"),
        (("--offload", "disk"), "an offload level is host or ssd"),
        (("--replicas", "2", "--what-if", "lost"), "goes with a single pipeline"),
    ],
)
def test_bad_values_are_one_line(words: tuple[str, ...], text: str, dse: Run) -> None:
    code, _, error = dse("--cluster", "llmpq_cluster3", *words)
    assert code == 2
    assert text in " ".join(error.split())
    assert "Traceback" not in error


def test_json_is_all_of_stdout() -> None:
    """In a process of its own, where solvers in C write to the descriptor itself."""
    words = ["--cluster", "llmpq_cluster9", "--tensor-parallel", "auto", *QUICK, "--json"]
    run = subprocess.run(
        [sys.executable, "-c", "from dse.cli.main import main; main()", *BASE, *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["solver"]["value"] > 0
