"""``dse calibrate`` and ``dse bench`` as a user calls them, and the scores against hand computation."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dse.calibrate.fidelity import score
from dse.calibrate.vidur import vidur_fidelity
from dse.cli.main import app
from hardware_specs.loader import load_device

KERNELS = Path(__file__).parents[2] / "data" / "kernel_times" / "kernels.csv"


def test_scores_by_hand():
    found = score(np.array([1.0, 2.0, 6.0]), np.array([1.0, 4.0, 4.0]))
    errors = (found.median_ape, found.mean_ape, found.weighted_ape)
    assert errors == pytest.approx((0.5, (0 + 0.5 + 0.5) / 3, (0 + 2 + 2) / 9))
    assert found.spearman == pytest.approx(np.sqrt(3) / 2)  # ranks 1 2 3 against 1 2.5 2.5


def test_calibrate_writes_a_device(tmp_path):
    lines = KERNELS.read_text().splitlines()
    mine = [line for line in lines[1:] if line.startswith("nvidia_h200_sxm,never,matmul,bf16")]
    csv, out = tmp_path / "h200.csv", tmp_path / "h200.yaml"
    csv.write_text("\n".join([lines[0], *mine]))
    arguments = ["calibrate", "nvidia_h200_sxm", "--profile", str(csv), "-o", str(out), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["file"] == str(out)
    (kernel,) = document["kernels"]
    assert kernel["n_rows"] == len(mine)
    assert kernel["after"] < kernel["before"] * 1.2
    assert load_device(out).kernel("gemm").provenance == "calibrated"


def test_calibrate_refuses_too_little(tmp_path):
    csv = tmp_path / "few.csv"
    csv.write_text("kind,precision,m,n,k,seconds\nmatmul,bf16,1,4096,4096,1e-5\n")
    result = CliRunner().invoke(app, ["calibrate", "nvidia_h200_sxm", "--profile", str(csv)])
    assert result.exit_code != 0
    assert "under-determined" in str(result.exception)


def test_another_source_and_library(shared_data):
    """Vidur's products and collectives on A100 and H100, which no constant was fitted to."""
    rows = {(row.operator, row.device): row for row in vidur_fidelity(shared_data / "measured" / "vidur")}
    for key, bound in (
        (("gemm", "nvidia_a100_sxm_80gb"), 0.12),
        (("gemm", "nvidia_h100_sxm"), 0.20),
        (("all_reduce", "nvidia_a100_sxm_80gb"), 0.18),
        (("all_reduce", "nvidia_h100_sxm"), 0.12),
    ):
        assert rows[key].model.median_ape < bound
        assert rows[key].model.median_ape < rows[key].naive.median_ape


@pytest.mark.skipif(find_spec("aiconfigurator_core") is None, reason="needs the extra 'bench'")
def test_fidelity_is_deterministic():
    arguments = ["bench", "fidelity", "--operator", "all_reduce", "--device", "nvidia_h100_sxm", "--json"]
    first, second = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    document = json.loads(first.stdout)
    assert all(row["passes"] in (True, None) for row in document["rows"])
