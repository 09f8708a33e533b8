"""Training steps with labels from everywhere, of large students of a large teacher."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Figures, Ratio, alternate, medians
from benchmarks.random_teacher import CONFIGS
from benchmarks.steps import BATCHES, step_calls
from benchmarks.synthetic import write_project
from pipeline.detector.build import load_model_config
from pipeline.teacher_pass.run import fill_store

BARS = {"constant labels": 1.03, "online LAD (mmdet)": 0.5}
"""What a step with cached LAD labels may take of others, for the first case without AMP."""


@dataclass(frozen=True)
class _Case:
    """A student, its teacher, and what both see.

    Attributes:
        student: name of its config.
        teacher: name of its config.
        size: (width, height) of views.
        batch: views of a step.
        repeats: steps of each way.
    """

    student: str
    teacher: str
    size: tuple[int, int]
    batch: int
    repeats: int

    def __str__(self) -> str:
        width, height = self.size
        return f"{self.student} of {self.teacher}, {self.batch} views of {width} x {height}"


_CASES = (
    _Case("paa_r18", "paa_r101", (512, 512), batch=8, repeats=8),
    _Case("paa_r50", "paa_r101", (1333, 800), batch=4, repeats=6),
)
_QUICK = (_Case("paa_r18_quarter", "paa_r18_quarter", (128, 96), batch=2, repeats=1),)


def measure(quick: bool) -> Iterator[Figures]:
    """Steps of all ways in turn, on the same batches, without and with mixed precision."""
    for number, case in enumerate(_QUICK if quick else _CASES):
        with tempfile.TemporaryDirectory() as folder:
            params, paths = write_project(
                Path(folder),
                load_model_config(CONFIGS / f"{case.teacher}.py"),
                images=case.batch * BATCHES,
                size=case.size,
                classes=80,
                training={"batch_size": case.batch},
                teacher_pass={"batch_size": case.batch, "workers": 0},
                students={
                    "student": {"config": str(CONFIGS / f"{case.student}.py"), "method": "lad"}
                },
            )
            fill_store(params.labels, params.teacher_pass, params.views, paths, replace=False)
            for amp in (False, True):
                # mmengine's AMP needs a GPU; torch's autocast does not.
                on_gpu = {"amp": amp and torch.cuda.is_available()}
                training = params.training.model_copy(update=on_gpu)
                changed = params.model_copy(update={"training": training})
                calls = step_calls("student", changed, paths)
                if amp and not torch.cuda.is_available():
                    calls = {way: partial(_autocast, call) for way, call in calls.items()}
                yield _measure(case, amp, calls, BARS if number == 0 and not amp else {})
                del calls
                torch.cuda.empty_cache()


def _autocast(call: Callable[[int], object], number: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        call(number)


def _measure(
    case: _Case, amp: bool, calls: dict[str, Callable[[int], object]], bars: dict[str, float]
) -> Figures:
    failed = _failing(calls)
    running = {way: call for way, call in calls.items() if way not in failed}
    seconds = alternate(running, case.repeats, warmup=0)
    middle = medians(seconds)
    pairs = [("cached lad", way) for way in middle if "solad" not in way and way != "cached lad"]
    pairs += [("cached solad", "constant solad"), ("cached solad", "cached lad")]
    ratios = [
        Ratio(
            f"step, {way}",
            middle[way],
            other,
            middle[other],
            "s",
            at_most=bars.get(other) if way == "cached lad" else None,
        )
        for way, other in pairs
    ]
    note = f"{case}, random weights, {'AMP' if amp else 'float32'}; medians of {case.repeats} steps"
    note += "".join(f"; {way} fails: {error}" for way, error in failed.items())
    return Figures(ratios, note, {"seconds": seconds, "failed": failed})


def _failing(calls: dict[str, Callable[[int], object]]) -> dict[str, str]:
    """The ways of mmdet that fail on one of the batches, and why.

    Of equal costs, which are frequent in half precision, scikit-learn makes no mixture.
    """
    failed = {}
    for way, call in calls.items():
        try:
            for number in range(BATCHES):
                call(number)
        except ValueError as error:
            if "(mmdet)" not in way:
                raise
            failed[way] = str(error).partition(" (")[0]
    return failed
