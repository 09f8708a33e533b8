"""Work that goes on in the background, in order, while the caller prepares the next piece."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType

import torch


class Background:
    """One thread that does pieces of work in the order in which they came.

    Leaving its `with` block waits for all of them. An error of a piece comes out of the next
    `submit`, or out of the block; the pieces after it are not done.

    On a GPU the thread has a stream of its own, so that its work goes on beside the network's. Its
    kernels come first where both want the GPU: they are small, and the thread waits for them.

    Args:
        ahead: pieces that may wait; with more, `submit` blocks, so that memory is bounded.
        device: on which the pieces work.
    """

    def __init__(self, ahead: int, device: torch.device) -> None:
        self.ahead = ahead
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        # More than one torch thread here would take the cores from those of the caller.
        self._thread = ThreadPoolExecutor(1, "background", torch.set_num_threads, (1,))
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def submit(self, work: Callable[[], object]) -> None:
        """Have `work` done after what was submitted before.

        It finds ready what the caller has asked the GPU for so far. Before it ends, it must wait
        for what it asks the GPU for: the memory of what it has read may then be taken for others.
        """
        if self._stream:
            asked = torch.cuda.current_stream(self._stream.device).record_event()
            work = partial(self._on_stream, asked, work)
        self._waiting.append(self._thread.submit(self._do, work))
        while self._waiting and (len(self._waiting) > self.ahead + 1 or self._waiting[0].done()):
            self._waiting.popleft().result()

    def _on_stream(self, asked: torch.cuda.Event, work: Callable[[], object]) -> None:
        with torch.cuda.stream(self._stream):
            asked.wait()
            work()

    def _do(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> "Background":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None:
            for done in self._waiting:
                done.result()
