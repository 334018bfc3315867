"""Which device the emulation runs on: CUDA where there is one, else the processor."""

from __future__ import annotations

import os

import torch

from dse.errors import ConfigError

VARIABLE = "DSE_DEVICE"
TYPES = ("cpu", "cuda")


def chosen_device(name: str | None = None) -> torch.device:
    """Return the device of a name, of the environment's ``DSE_DEVICE``, or the best that is there.

    Args:
        name: "cpu", "cuda" or "cuda:1"; None asks the environment.

    Raises:
        ConfigError: another name, or a device that this machine (or this build of torch) does not have.
    """
    text = name or os.environ.get(VARIABLE) or ("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = text.partition(":")
    if kind not in TYPES or (number and not number.isdecimal()):
        raise ConfigError(f"unknown device '{text}'", path="device", value=text, allowed=(*TYPES, "cuda:1"))
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "no CUDA device is available here (driver, or a torch without CUDA?)", path="device"
        )
    index, count = int(number or torch.cuda.current_device()), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f"there is no cuda:{index}, but {count} in all", path="device", value=text)
    return torch.device("cuda", index)


def device_label(device: torch.device) -> str:
    """Return how results name a device: "cpu", or the kind and model of an accelerator."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return device.type
    return f"cuda ({torch.cuda.get_device_name(device)})"
