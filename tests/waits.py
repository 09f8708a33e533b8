"""Counts how often a piece of work waits for its device."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "unique", "bincount", "masked_select", "equal")
"""Operations whose result a CPU needs before it can go on."""


class _WaitingOperations(TorchDispatchMode):
    """Counts, on the CPU, the operations that would wait for a GPU.

    Copies to a GPU and back, which can wait too, do not happen there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.counting = True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in args[1]
        )
        if self.counting and (by_mask or name.strip("_").startswith(WAITING) or name in WAITING):
            self.count += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def _on_the_cpu_anyway(monkeypatch: pytest.MonkeyPatch, mode: _WaitingOperations):
    """Not to count the fits of mixtures, which are made on the CPU whatever the device."""
    import pipeline.assignment.paa as paa

    fit_mixtures = paa.fit_mixtures

    def fit(*args: Any) -> Any:
        mode.counting = False
        try:
            return fit_mixtures(*args)
        finally:
            mode.counting = True

    with monkeypatch.context() as patch:
        patch.setattr(paa, "fit_mixtures", fit)
        yield


def count_waits(device: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a call waits for its device: as torch warns of it, or on a CPU by operations."""
    if device == "cpu":
        mode = _WaitingOperations()
        with _on_the_cpu_anyway(monkeypatch, mode), mode:
            call()
        return mode.count
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(one.message) for one in caught)
