"""What figures were measured on."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device

VERSIONS = ("torch", "onedl-mmdetection", "scikit-learn", "zarr", "numpy")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = get_device()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
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
