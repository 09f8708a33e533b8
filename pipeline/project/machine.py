"""What figures were measured on."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

VERSIONS = ("torch", "onedl-mmdetection", "scikit-learn", "zarr", "numpy")


def machine() -> dict[str, Any]:
    """The device, its threads, and the versions of Python and of the libraries that count."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    } | {name: version(name) for name in VERSIONS}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or "CPU"
