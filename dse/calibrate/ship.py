"""Writing refitted constants into the packaged spec files, and nothing else of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from dse.calibrate.documents import collective_document, flow, kernel_document
from dse.errors import ConfigError
from hardware_specs.kernels import CollectiveProfile, KernelProfile

Kernels = Mapping[str, tuple[KernelProfile, str]]

HEADER = "# Written by `dse bench fit --write`; edit nothing here by hand.\n"


def packaged_folder() -> Path:
    """Return where the spec files of this installation are."""
    import hardware_specs

    return Path(hardware_specs.__file__).parent


def kernels_text(kernels: Kernels) -> str:
    """Return the ``kernels`` section of a file."""
    lines = [flow(name, kernel_document(profile, source), 2) for name, (profile, source) in kernels.items()]
    return "\n".join(["kernels:", *lines]) + "\n"


def write_device(name: str, kernels: Kernels, collectives: Sequence[CollectiveProfile]) -> None:
    """Replace the kernels of a device file, and the collectives of its first scale-up (else host) link.

    Raises:
        ConfigError: the file has no such section.
    """
    file = packaged_folder() / "devices" / f"{name}.yaml"
    text = file.read_text(encoding="utf-8")
    kept = {key: value for key, value in yaml.safe_load(text)["kernels"].items() if key not in kernels}
    section = kernels_text(kernels) + "".join(flow(key, value, 2) + "\n" for key, value in kept.items())
    text, n_found = re.subn(r"(?m)^kernels:\n(?:[ #].*\n)*", lambda _: section, text, count=1)
    if not n_found:
        raise ConfigError("has no 'kernels' section", file=str(file))
    text = _with_collectives(text, collectives, str(file))
    file.write_text(_without_unused_sources(text), encoding="utf-8")


def _without_unused_sources(text: str) -> str:
    """Drop entries of ``sources`` that no number names any more."""
    for name in yaml.safe_load(text).get("sources", {}):
        if not re.search(rf"source: {re.escape(name)}\b", text):
            text = re.sub(rf"(?m)^  {re.escape(name)}: .*\n", "", text, count=1)
    return text


def _with_collectives(text: str, collectives: Sequence[CollectiveProfile], file: str) -> str:
    """Return a device file in which the link of the collectives ends with them."""
    start, end = "     # fitted collectives\n", "     # end of fitted collectives\n"
    text = re.sub(re.escape(start) + r".*?" + re.escape(end), "", text, flags=re.DOTALL)
    kind = "scale_up" if "kind: scale_up" in text else "host"
    place = re.search(rf"(?m)^  - {{name: \w+, kind: {kind},.*\n", text)
    if place is None:
        raise ConfigError(f"has no link of kind {kind} in flow style", file=file, path="links")
    body = ",\n".join(flow(entry.name, collective_document(entry, entry.source), 8) for entry in collectives)
    block = f"{start}     collectives: {{\n{body}}},\n{end}"
    return text[: place.end()] + block + text[place.end() :]


def write_defaults(classes: Mapping[str, Kernels], links: Mapping[str, Sequence[CollectiveProfile]]) -> None:
    """Write the constants of device classes and of kinds of links."""
    folder = packaged_folder() / "defaults"
    folder.mkdir(exist_ok=True)
    for name, kernels in classes.items():
        (folder / f"{name}.yaml").write_text(HEADER + kernels_text(kernels), encoding="utf-8")
    lines: list[str] = []
    for kind, profiles in links.items():
        lines.append(f"{kind}:")
        lines += [flow(entry.name, collective_document(entry, entry.source), 2) for entry in profiles]
    (folder / "links.yaml").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
