"""The benchmark of a student's step: that every way of getting labels runs."""

import statistics

from pipeline.benchmark import time_steps


def test_every_way_takes_a_step(labelled) -> None:
    times = time_steps("lad", labelled.params, labelled.paths, repeats=2)
    assert set(times.seconds) == {
        "paa (mmdet)",
        "paa (batched)",
        "online LAD (mmdet)",
        "online LAD (batched)",
        "cached lad",
        "constant labels",
        "cached solad",
        "constant solad",
    }
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.seconds.values())
    assert times.median("cached lad") == statistics.median(times.seconds["cached lad"])
