import threading

import pytest
import torch

from pipeline.teacher_pass.background import Background
from tests.conftest import DEVICES

CPU = torch.device("cpu")


def test_work_is_done_in_order_beside_the_caller() -> None:
    done: list[tuple[int, int]] = []
    with Background(2, CPU) as background:
        for number in range(20):
            background.submit(lambda n=number: done.append((n, threading.get_ident())))
    assert [number for number, _ in done] == list(range(20))
    assert {thread for _, thread in done} != {threading.get_ident()}


def test_what_waits_is_bounded() -> None:
    gate, submitted = threading.Event(), []

    def caller() -> None:
        with Background(2, CPU) as background:
            for number in range(6):
                background.submit(gate.wait)
                submitted.append(number)

    thread = threading.Thread(target=caller)
    thread.start()
    thread.join(0.3)
    assert len(submitted) == 3  # one at work, two that wait; the next one blocks
    gate.set()
    thread.join()
    assert len(submitted) == 6


def fail() -> None:
    raise OSError("the disk is full")


def test_an_error_comes_out_and_ends_the_work() -> None:
    done: list[int] = []

    def work() -> None:
        with Background(2, CPU) as background:
            background.submit(fail)
            for number in range(10):
                background.submit(lambda n=number: done.append(n))

    with pytest.raises(OSError, match="the disk is full"):
        work()
    assert not done


def test_the_last_error_comes_out_of_the_block() -> None:
    with pytest.raises(OSError, match="the disk is full"), Background(2, CPU) as background:
        background.submit(fail)


def test_what_was_submitted_is_done_before_the_callers_error() -> None:
    done: list[int] = []

    def work() -> None:
        with Background(2, CPU) as background:
            background.submit(lambda: done.append(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]


@pytest.mark.parametrize("device", DEVICES)
def test_work_finds_ready_what_the_caller_has_asked_for(device: str) -> None:
    size = 4000 if device == "cuda" else 40
    mean, found, streams = torch.ones(size, size, device=device) / size, [], []

    def work(product: torch.Tensor) -> None:
        found.append(product[0].sum().item())
        if device == "cuda":
            streams.append(torch.cuda.current_stream())

    with Background(2, torch.device(device)) as background:
        for number in range(8):
            product = mean * number
            for _ in range(20):  # a GPU takes some milliseconds, the caller does not wait
                product = product @ mean
            background.submit(lambda p=product: work(p))
            del product
    assert found == pytest.approx(range(8), rel=1e-3)
    assert all(stream != torch.cuda.current_stream() for stream in streams)
