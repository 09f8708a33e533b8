import os
import subprocess
import sys

import pytest

from pipeline.project.machine import MOST_LOADERS, cores, loader_processes


def test_a_given_number_of_loaders_is_taken() -> None:
    assert [loader_processes(workers) for workers in (0, 3, 40)] == [0, 3, 40]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_only_cores_that_the_process_may_use_count() -> None:
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{core}])\n"
        "from pipeline.project.machine import cores, loader_processes\n"
        "print(cores(), loader_processes(None))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "1"]


@pytest.mark.parametrize(
    ("machine", "processes", "expected"),
    [(2, None, 2), (64, None, MOST_LOADERS), (64, 8, 8), (4, 8, 1), (64, 2, MOST_LOADERS)],
)
def test_by_default_a_loader_a_core_shared_among_processes(
    monkeypatch: pytest.MonkeyPatch, machine: int, processes: int | None, expected: int
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: machine)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert cores() == machine
    assert loader_processes(None) == expected
