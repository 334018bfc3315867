"""Error texts: file, path, value, what is allowed, nearest match; exit codes."""

from __future__ import annotations

import pytest

from dse.errors import ConfigError, DoesNotFitMemory, Interrupted, NoFeasiblePlan, UnsupportedOnDevice
from dse.registry import Registry


def test_config_error_names_everything() -> None:
    error = ConfigError(
        "unknown key", file="a.yaml", path="memory.hbm", value="capcity", allowed=["capacity", "bandwidth"]
    )
    assert (
        str(error)
        == "a.yaml: memory.hbm: unknown key (did you mean 'capacity'? allowed: bandwidth, capacity)"
    )


def test_no_guess_when_nothing_is_near() -> None:
    error = ConfigError("unknown model 'zzz'", value="zzz", allowed=["gpt2"])
    assert "did you mean" not in str(error)
    assert "allowed: gpt2" in str(error)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (UnsupportedOnDevice("t4", "fp8", known=["fp16"]), 2),
        (NoFeasiblePlan("x"), 3),
        (DoesNotFitMemory("x"), 3),
        (Interrupted("x"), 130),
    ],
)
def test_exit_codes(error: ConfigError | NoFeasiblePlan, code: int) -> None:
    assert error.exit_code == code


def test_registry_refuses_duplicates_and_suggests() -> None:
    registry: Registry[int] = Registry("metric")
    registry.register("kl")(1)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("kl")(2)
    with pytest.raises(ConfigError, match="did you mean 'kl'"):
        registry.get("k1")
    assert registry.names() == ("kl",)
    assert "kl" in registry
    assert len(registry) == 1
