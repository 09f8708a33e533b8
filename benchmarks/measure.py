"""What the parts of the benchmark share: ratios with their bars, and how they are measured."""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from pipeline.project.memory import keep_freed_memory
from pipeline.project.text import markdown_table


@dataclass(frozen=True)
class Ratio:
    """A figure of ours over that of an alternative.

    Attributes:
        name: what was measured.
        ours: our figure.
        against: what the alternative is.
        theirs: its figure.
        unit: of both.
        at_least: the bar of the ratio, if it has a lower one.
        at_most: the bar of the ratio, if it has an upper one.
    """

    name: str
    ours: float
    against: str
    theirs: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def value(self) -> float:
        """Ours over theirs."""
        return self.ours / self.theirs

    @property
    def holds(self) -> bool | None:
        """Whether the ratio meets its bar; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= self.value <= high

    @property
    def bar(self) -> str:
        """The bar as text."""
        low = [] if self.at_least is None else [f">= {self.at_least:g}"]
        high = [] if self.at_most is None else [f"<= {self.at_most:g}"]
        return ", ".join(low + high)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"ratio": self.value, "holds": self.holds}


@dataclass(frozen=True)
class Figures:
    """What a part of the benchmark found.

    Attributes:
        ratios: to the alternatives; none where nothing could be measured.
        note: what they were measured on.
        details: whatever else is worth keeping, as plain values.
        failure: which check failed, if one did; a missed bar is none.
    """

    ratios: list[Ratio]
    note: str
    details: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        ratios = [ratio.plain() for ratio in self.ratios]
        return {"note": self.note, "ratios": ratios, "details": self.details}


COLUMNS = ("what", ">ours", "against", ">theirs", "unit", ">ratio", "bar", "")
VERDICTS = {None: "", True: "holds", False: "**missed**"}


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """The ratios as a Markdown table."""
    cells = (
        (
            one.name,
            f"{one.ours:.4g}",
            one.against,
            f"{one.theirs:.4g}",
            one.unit,
            f"{one.value:.3f}",
            one.bar,
            VERDICTS[one.holds],
        )
        for one in ratios
    )
    return "\n".join(markdown_table(COLUMNS, cells)) + "\n"


def figures_section(part: str, figures: Figures) -> str:
    """What a part of the benchmark found, as a section of Markdown."""
    section = f"\n## {part}\n\n{figures.note}\n"
    if figures.ratios:
        section += f"\n{ratio_table(figures.ratios)}"
    return section


def alternate(
    ways: Mapping[str, Callable[[int], object]], repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time several ways of doing the same in turn, so that a slow moment hits all of them.

    Args:
        ways: by name, what to call with the number of the round.
        repeats: rounds that count.
        warmup: rounds before those; their numbers are negative.

    Returns:
        Seconds of each round by way.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in tqdm(range(-warmup, repeats), desc="bench", unit="round", delay=2):
        for way, call in ways.items():
            spent = timed(call, number)
            if number >= 0:
                seconds[way].append(spent)
    return seconds


def timed(call: Callable[..., object], *args: Any) -> float:
    """Seconds of a call, work on a GPU included."""
    _wait()
    started = time.perf_counter()
    call(*args)
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each way."""
    return {way: statistics.median(spent) for way, spent in seconds.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch and the libraries under NumPy and scikit-learn to one thread."""
    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def in_own_process(function: Callable[..., Any], *args: Any, keep_memory: bool = True) -> Any:
    """What a function returns in a new process: its peak of memory is its own.

    Args:
        function: of a module.
        args: that can be pickled.
        keep_memory: whether the process keeps the memory that tensors free, as `lad` does.
    """
    spawn = multiprocessing.get_context("spawn")
    start = keep_freed_memory if keep_memory else None
    with ProcessPoolExecutor(1, spawn, start) as executor:
        return executor.submit(function, *args).result()


def peak_memory() -> int:
    """The most bytes that this process has held: of the GPU where there is one, else of RAM.

    Not `ru_maxrss`, which a process inherits from the one that starts it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.is_file():
        raise NotImplementedError(f"peak memory is read from {status}; {sys.platform} has none")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
