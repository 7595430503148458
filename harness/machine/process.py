"""The one door to host processes of a machine: QEMU, started so that it dies with the harness.

``setpriv --pdeathsig KILL`` makes the kernel kill the child when the *thread* that spawned it ends
(prctl(2), PR_SET_PDEATHSIG). So one thread, which lives as long as this process, spawns them all.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

import psutil

from harness.deadline import Deadline
from harness.errors import HostError

# The signal is for the parent's death from now on: one that died before that moment is no longer this one's parent.
_UNLESS_ORPHANED = 'test "$PPID" = "$0" && exec "$@"'
_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR")


class _Spawner:
    """Runs calls, one after another, on a daemon thread that never ends before the process does."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls: SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]]
        self._pid = 0

    def spawn(self, call: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._pid != os.getpid():  # first use, or first use after a fork: threads do not survive one
                self._calls = SimpleQueue()
                Thread(target=self._serve, args=(self._calls,), name="spawner", daemon=True).start()
                self._pid = os.getpid()
            calls = self._calls
        future: Future[subprocess.Popen[bytes]] = Future()
        calls.put((call, future))
        return future.result()

    @staticmethod
    def _serve(
        calls: SimpleQueue[tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]],
    ) -> None:
        while True:
            call, future = calls.get()
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


_SPAWNER = _Spawner()


@contextmanager
def _host_errors(program: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(f"{program} cannot be started: {error}") from error


class Process:
    """A running host process.

    :param argv: the command; no shell reads it.
    :param output: file that receives its standard output and error.
    :param pass_fds: file descriptors that it inherits under the same numbers.
    :raises HostError: when the program does not exist or cannot be started.
    """

    def __init__(self, argv: Sequence[str], *, output: Path, cwd: Path, pass_fds: Sequence[int] = ()) -> None:
        if shutil.which(argv[0]) is None:
            raise HostError(f"{argv[0]} is not installed", hint="run `make setup`, or see `harness doctor`")
        guard = ["sh", "-c", _UNLESS_ORPHANED, str(os.getpid())]
        command = ["setpriv", "--pdeathsig", "KILL", "--", *guard, *argv]
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # A file that cannot be opened and a program that cannot be started are the same to who asks.
        with _host_errors(argv[0]), output.open("ab") as log:
            # A session of its own: Ctrl-C reaches the harness alone, which then tears down in order.
            self._popen = _SPAWNER.spawn(
                lambda: subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env={**environment, "LC_ALL": "C.UTF-8"},
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,
                )
            )
        self.output = output

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    def resident_bytes(self) -> int:
        """Its resident memory (VmRSS).

        :raises HostError: when it has ended.
        """
        with suppress(psutil.NoSuchProcess):
            if (resident := int(psutil.Process(self.pid).memory_info().rss)) > 0:  # a zombie has none
                return resident
        raise HostError("a process that has ended holds no memory")

    def poll(self) -> int | None:
        """The exit status as ``subprocess`` gives it (negative for a signal), or None while it runs."""
        return self._popen.poll()

    def is_stopped(self) -> bool:
        """Whether a signal such as SIGSTOP keeps it from running."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        return False

    def wait(self, deadline: Deadline) -> int | None:
        """Wait for the end; None when the deadline came first."""
        try:
            return self._popen.wait(deadline.remaining_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> int:
        """SIGKILL, reap, and give the exit status. Safe to call again.

        What it started goes with it: a program of that name may be somebody's script around the real one.
        """
        # Only before it is reaped is its group's number sure to be its own.
        if self._popen.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        return self._popen.wait()


def run_to_end(argv: Sequence[str], *, timeout_s: float = 10) -> str:
    """Run a short command of this host and give what it printed, whatever its exit status.

    One that does not end in time is ended, with all that it started; one that cannot be started has "printed" why.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return str(error)
    with process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
        finally:
            if process.poll() is None:  # only then is its group's number sure to be its own
                os.killpg(process.pid, signal.SIGKILL)
    return said.decode("utf-8", "replace")


def describe_exit(status: int) -> str:
    """An exit status in words: ``exit status 1`` or ``signal SIGABRT``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def is_running(pid: int) -> bool:
    """Whether a process runs. A zombie does not: where PID 1 reaps nobody, ``kill -0`` would say it does."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
