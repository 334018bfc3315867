"""The project as a whole: light start, true README, honest packaging."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "optuna", "ortools", "plotly", "networkx", "pandas", "scipy")


def loaded_after(code: str) -> set[str]:
    """Names of the heavy libraries that are loaded once ``code`` has run in a fresh interpreter."""
    report = f"print(*[n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr)"
    probe = f"import sys\n{code}\n{report}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def command(*words: str) -> str:
    """Code that runs the command line in this interpreter and swallows its exit and output."""
    lines = (
        "import contextlib, io",
        "from dse.cli.main import app",
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):",
        f"    app({list(words)!r})",
    )
    return "\n".join(lines)


@pytest.mark.parametrize(
    "code",
    [
        "import dse",
        command("--help"),
        command("run", "--help"),
        command("devices"),
        command("devices", "nvidia_h100_sxm"),
        command("models"),
    ],
)
def test_light_commands_load_no_heavy_library(code: str) -> None:
    assert loaded_after(code) == set()


def test_readme_commands_are_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    readme = (ROOT / "README.md").read_text().splitlines()
    line = next(text for text in ci if text.endswith("-m tests"))
    assert line in [text.strip() for text in readme]


def test_all_packages_are_listed_for_installation() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    tops = ("hardware_specs", "cost_models", "dse", "studies", "reports")
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for top in tops
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert found == listed


def test_files_stay_small() -> None:
    """The style budget: no source file over 500 lines."""
    tops = ("hardware_specs", "cost_models", "dse", "studies", "reports", "tests")
    long = {
        str(path.relative_to(ROOT)): n
        for top in tops
        for path in (ROOT / top).rglob("*.py")
        if (n := len(path.read_text().splitlines())) > 500
    }
    assert long == {}


FACTORIES = (
    *(
        "arange",
        "as_tensor",
        "empty",
        "eye",
        "from_numpy",
        "frombuffer",
        "full",
        "linspace",
        "logspace",
        "ones",
    ),
    *(
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "zeros",
    ),
)


def test_every_tensor_says_where_it_is_made() -> None:
    """A tensor made on the processor by default meets others on CUDA only where nobody has a test for it.

    Numpy arrays become tensors by ``torch.as_tensor(..., device=...)``.
    """
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}"
        for package in ("emulate", "quantize", "sensitivity", "evaluate")
        for path in sorted((ROOT / "dse" / package).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in FACTORIES
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]
    assert silent == []
