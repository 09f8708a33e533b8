"""Peak memory of a student's training with cached and with online labels."""

from benchmarks.measure import Figures, Ratio, in_own_process, peak_memory
from benchmarks.steps import step_calls
from pipeline.project.paths import Paths
from stages.params import Params

WAYS = ("cached lad", "online LAD (mmdet)", "online LAD (batched)")


def peak_of_steps(name: str, params: Params, paths: Paths, way: str, steps: int) -> int:
    """Bytes that this process has held at most, after training steps of one way."""
    (call,) = step_calls(name, params, paths, [way]).values()
    for number in range(steps):
        call(number)
    return peak_memory()


def measure_memory(name: str, params: Params, paths: Paths, steps: int) -> Figures:
    """Train a student in a process of its own for each way of getting labels.

    Args:
        name: a student that learns from the store.
        params: the settings.
        paths: where data, teacher and labels are.
        steps: of each.

    Raises:
        UserError: the student is no cached one, or data, teacher or labels are missing.
    """
    peaks = {way: in_own_process(peak_of_steps, name, params, paths, way, steps) for way in WAYS}
    first, *others = WAYS
    ratios = [
        Ratio(f"peak memory, {first}", peaks[first] / 2**20, way, peaks[way] / 2**20, "MiB")
        for way in others
    ]
    note = f"student {name}, {steps} steps, each way in a process of its own, libraries included"
    return Figures(ratios, note, {"bytes": peaks})
