"""A real `lad` for tests that start it often: a process that has imported everything forks.

A test's `lad` is a script that sends its arguments, folder, environment and output to that process,
and gets the status back. What the teacher's network is shown is counted on the way.
"""

import json
import os
import signal
import socket
import stat
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LAD = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
told = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(told).to_bytes(4, "big")], [1, 2])
server.sendall(told)
sys.exit(int(server.recv(8) or 1))
"""


@contextmanager
def forked_lad(folder: Path) -> Iterator["ForkedLad"]:
    """Gives the process, and ends it."""
    lad = ForkedLad(folder)
    try:
        yield lad
    finally:
        lad.stop()


class ForkedLad:
    """The process, and the folder with its `lad`.

    Args:
        folder: made here, for the script, the socket and the count.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.calls = folder / "calls"
        self.forwards = folder / "forwards"
        self.reset()
        address = str(folder / "socket")
        script = folder / "lad"
        script.write_text(LAD.format(python=sys.executable, address=address))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve(listener)
            finally:
                os._exit(1)
        listener.close()

    def reset(self) -> None:
        """Forget what was called and counted."""
        self.calls.write_text("")
        self.forwards.write_text("")

    def commands(self) -> list[str]:
        """What was called, sorted, without options."""
        lines = self.calls.read_text().splitlines()
        return sorted(" ".join(w for w in line.split() if w[0] != "-") for line in lines)

    def views_shown(self) -> int:
        """How many views the teacher's network was shown."""
        return sum(map(int, self.forwards.read_text().split()))

    def stop(self) -> None:
        """End the process."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _serve(self, listener: socket.socket) -> None:
        import gc
        import importlib

        import mmdet.models  # noqa: F401
        import torch

        import pipeline.teacher_pass.teacher

        os.setsid()
        torch.set_num_threads(1)
        for name in ("data", "teacher", "labels", "verify", "student", "evaluate", "compare"):
            importlib.import_module(f"stages.{name}")
        forward = pipeline.teacher_pass.teacher.Teacher.forward

        def counted(teacher, inputs):
            with self.forwards.open("a") as file:
                file.write(f"{len(inputs)}\n")
            return forward(teacher, inputs)

        pipeline.teacher_pass.teacher.Teacher.forward = counted
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                self._answer(client)
            client.close()

    def _answer(self, client: socket.socket) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        length, outputs, *_ = socket.recv_fds(client, 4, 2)
        told = b""
        while len(told) < int.from_bytes(length, "big"):
            told += client.recv(1 << 16)
        arguments, folder, environment = json.loads(told)
        with self.calls.open("a") as calls:
            calls.write(" ".join(arguments) + "\n")
        for number, output in enumerate(outputs, 1):
            os.dup2(output, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        pid = os.fork()
        if pid == 0:
            self._run(arguments)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        client.sendall(str(abs(status)).encode())
        os._exit(0)

    def _run(self, arguments: list[str]) -> None:
        from stages.cli import lad

        sys.argv = ["lad", *arguments]
        # pytest's own are not those of the descriptors.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        status = 1
        try:
            lad(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
