"""``dse plan`` of an encoder-decoder says which layers are the encoder's."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from dse.cli.main import app
from tests.conformance.test_encoder_decoders import T5


def test_a_plan_names_the_encoders_layers(tmp_path: Path) -> None:
    """Oracle: the configuration, which has 3 layers of an encoder before 4 of a decoder."""
    (tmp_path / "config.json").write_text(json.dumps(T5))
    out = tmp_path / "plan.json"
    words = ["plan", str(tmp_path), "--cluster", "edge_pair", "--workload", "offline_batch"]
    done = CliRunner().invoke(app, [*words, "--metric", "noise", "-o", str(out)])
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text())
    assert document["encoder_layers"] == [0, 3]
    for first, end in (stage["layers"] for stage in document["stages"]):
        whose = "encoder" if end <= 3 else "decoder" if first >= 3 else "encoder to 2"
        assert f"{first}-{end - 1} ({whose})" in done.output
