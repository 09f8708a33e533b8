"""Tensors reuse the memory of freed ones, in `lad` and in the processes that it starts."""

import multiprocessing
import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.measure import in_own_process

PAGES = 10_000

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the memory of another C library is left as it is"
)


def tensor() -> torch.Tensor:
    return torch.ones(PAGES * resource.getpagesize(), dtype=torch.uint8)


def new_pages() -> int:
    """How many pages the kernel hands out for a tensor of `PAGES`, once many were freed."""
    counts = []
    for _ in range(20):  # glibc's cache of small pieces keeps the first few apart
        tensor()
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[-2]


def test_lad_keeps_freed_memory():
    code = """
from stages import cli
from tests.project.test_memory import new_pages
cli.lad = lambda: print(new_pages())
cli.main()
"""
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert int(ended.stdout.splitlines()[-1]) < PAGES / 100


def test_a_benchmark_in_its_own_process_keeps_freed_memory():
    assert in_own_process(new_pages) < PAGES / 100


def pages_given_back_for_a_fork() -> int:
    """By this process, once a tensor is free."""
    tensor()
    before = psutil.Process().memory_info().rss
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    return (before - psutil.Process().memory_info().rss) // resource.getpagesize()


def test_a_loaders_process_does_not_hold_on_to_freed_memory():
    assert in_own_process(pages_given_back_for_a_fork) > PAGES / 2
