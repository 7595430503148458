"""Processes beside the agent, that hold what must outlive a call: one session each, served over a socket.

A worker can be killed with all that it holds, may die of a signal without taking the agent with it, and goes on by
itself between calls, so that the agent stays free. Requests and answers are JSON, one a line.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from collections.abc import Callable
    from typing import Any, Protocol

    Answer = dict[str, Any]

    class Session(Protocol):
        """What a worker holds: each operation is a method that takes and gives JSON values."""

        def waits(self) -> tuple[list[int], float | None]:
            """Files whose news :meth:`turn` wants, and after how many seconds it wants a turn anyway."""
            ...

        def turn(self) -> None:
            """Do what there is to do between calls."""
            ...


class WorkerDied(Exception):
    """The worker is gone; ``signal`` is what ended it (0: it exited)."""

    def __init__(self, name: str, number: int) -> None:
        self.signal = number
        what = f"died of {signal.Signals(number).name}" if number else "ended by itself"
        super().__init__(f"{name} {what}")


class Worker:
    """A process that serves one session.

    :param make: makes the session, in the new process.
    """

    def __init__(self, name: str, make: Callable[[], Session]) -> None:
        self.name = name
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _become_worker(theirs, make)
        theirs.close()
        self._socket = ours
        self._buffer = b""

    def call(self, operation: str, arguments: dict[str, Any], timeout_s: float = 120) -> Answer:
        """Let the session do something.

        :raises WorkerDied: when it is gone, or dies of it.
        :raises RuntimeError: when the operation raised.
        :raises TimeoutError: when it does not answer.
        """
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(json.dumps([operation, arguments]).encode() + b"\n")
            while b"\n" not in self._buffer:
                chunk = self._socket.recv(1 << 16)
                if not chunk:
                    raise WorkerDied(self.name, self.reap())
                self._buffer += chunk
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerDied(self.name, self.reap()) from error
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: Answer = json.loads(line)
        if "failure" in answer:
            raise RuntimeError(f"{operation}: {answer['failure']}")
        return answer

    def reap(self, *, kill: bool = False) -> int:
        """End the process, by SIGKILL or by closing its socket, and give the signal that it died of (0: none)."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        self._socket.close()
        _, status = os.waitpid(self.pid, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


class Keeper:
    """The one worker of its kind in a guest: started when it is needed."""

    def __init__(self, name: str, make: Callable[[], Session]) -> None:
        self._name = name
        self._make = make
        self._worker: Worker | None = None

    def call(self, operation: str, arguments: dict[str, Any]) -> Answer:
        """Let the worker do something. When a signal ends it meanwhile, the answer is that signal: ``died``.

        :raises WorkerDied: when it ended without one, as when it could not start.
        """
        if self._worker is None:
            self._worker = Worker(self._name, self._make)
        try:
            return self._worker.call(operation, arguments)
        except WorkerDied as death:
            self._worker = None
            if not death.signal:
                raise
            return {"died": signal.Signals(death.signal).name}

    def end(self, kill: bool) -> Answer:
        """End the worker with all it holds; gives the signal that it died of (0: none)."""
        worker, self._worker = self._worker, None
        return {"signal": 0 if worker is None else worker.reap(kill=kill)}


def _become_worker(stream: socket.socket, make: Callable[[], Session]) -> None:
    """Serve until the agent closes its end; never returns."""
    status = 1
    try:
        keep = stream.fileno()
        os.closerange(3, keep)
        os.closerange(keep + 1, 1 << 10)
        sys.stderr = os.fdopen(2, "w", closefd=False)  # the agent's may be a file that was just closed
        serve(stream, make())
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def serve(stream: socket.socket, session: Session) -> None:
    """Answer requests, and give the session its turns between them."""
    buffer = b""
    while True:
        files, patience_s = session.waits()
        ready, _, _ = select.select([stream.fileno(), *files], [], [], patience_s)
        session.turn()
        if stream.fileno() not in ready:
            continue
        chunk = stream.recv(1 << 16)
        if not chunk:
            return
        buffer += chunk
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            operation, arguments = json.loads(line)
            stream.sendall(json.dumps(_answer(session, operation, arguments)).encode() + b"\n")


def _answer(session: Session, operation: str, arguments: dict[str, Any]) -> Answer:
    try:
        answer: Answer = getattr(session, operation)(**arguments)
    except Exception as error:
        traceback.print_exc()
        return {"failure": f"{type(error).__name__}: {error}"}
    return answer
