"""A running machine: QEMU with its monitor, its console, its traces, and the guest behind them."""

from __future__ import annotations

import secrets
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.deadline import Deadline, DeadlineExceeded
from harness.errors import (
    BootError,
    GuestCrash,
    GuestError,
    GuestHang,
    HarnessError,
    HostError,
    LostConnection,
)
from harness.guest.identity import Identity
from harness.guest.probe import Probe
from harness.guest.ssh import Journal, Ssh
from harness.machine.accel import Accelerator
from harness.machine.console import Console
from harness.machine.initrd import write_initrd
from harness.machine.process import Process, describe_exit
from harness.machine.qmp import Monitor, MonitorLost
from harness.machine.remedies import HINTS, blame_age
from harness.machine.scratch import check_room
from harness.machine.spec import Plan, Wiring, qemu_argv
from harness.machine.trace import Tracer
from harness.oops import Blame, Report, Severity

#: Who kills QEMU with these is the OOM killer or a person, and may not do it again.
_SIGNALS_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)

#: How long QEMU may take to be gone after its sockets have closed, on a host that does much else.
_END_S = 5.0
#: How long the rest of a crash report may take that the end of the machine may have cut off.
_REST_S = 1.0

READY = b"harness: ready"
_MONITOR_TIMEOUT_S = 30
_POLL_S = 0.05
_ENDS = {"guest-reset": "the machine reset itself", "guest-shutdown": "the machine powered itself off"}


class ProvokedCrash(GuestError):
    """The machine has come to the end that the scenario provokes on purpose (``allow_crash``)."""


@dataclass(slots=True)
class Timings:
    """What the start of a machine cost, in seconds from QEMU's start."""

    monitor: float = 0.0
    ready: float = 0.0
    first_command: float = 0.0


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What QEMU boots: a kernel and the segments that make up its initramfs, in order."""

    kernel: Path
    segments: tuple[Path, ...]


@dataclass(slots=True)
class _Running:
    """What exists only while QEMU runs."""

    process: Process
    monitor: Monitor
    tracer: Tracer
    started: float
    ssh: Ssh | None = None
    probe: Probe | None = None
    pauses_expected: bool = False
    stack: ExitStack = field(default_factory=ExitStack)


class Machine:
    """One guest under QEMU. A context manager: QEMU does not outlive the block.

    :param layer: the guest's name in consoles, evidence and errors.
    :param results: directory for logs; they stay.
    :param scratch: directory for sockets and temporary files; it goes.
    :param tolerated: whether a crash report is one that the scenario provokes on purpose.
    """

    def __init__(
        self,
        plan: Plan,
        files: BootFiles,
        accelerator: Accelerator,
        *,
        results: Path,
        scratch: Path,
        layer: str = "guest",
        tolerated: Callable[[Report], bool] = lambda _: False,
    ) -> None:
        self.plan = plan
        self.files = files
        self.accelerator = accelerator
        self.layer = layer
        self.results = results
        self.identity = Identity.generate()
        self.timings = Timings()
        self.journal = Journal(results / "ssh.jsonl")
        self.console_socket = scratch / "console"
        self.console = Console(layer, "linux", results / f"console-{layer}.log", self.console_socket)
        self.qemu_output = Console("qemu", "qemu", results / "qemu.log")
        self._tolerated = tolerated
        self.scratch = scratch
        self.pids: list[int] = []
        self._running: _Running | None = None
        self._starts = 0
        self._wiring = Wiring(
            kernel=str(files.kernel),
            initrd=str(scratch / "initrd"),
            mac="52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3)),
            console_socket=str(self.console_socket),
            console_log=str(self.console.log),
        )

    @property
    def time_factor(self) -> float:
        """By how much this machine is slower than one under KVM, as its profile says."""
        return self.plan.profile.tcg_factor if self.accelerator.name == "tcg" else 1.0

    @property
    def consoles(self) -> tuple[Console, ...]:
        """Everything that is scanned for crashes."""
        return (self.console, self.qemu_output)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    # -- start and end -------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start QEMU and wait until the guest takes commands.

        :raises HostError: QEMU cannot be started, or ended.
        :raises BootError: the guest is not there in time, or its image is at fault.
        :raises GuestCrash: the guest's kernel crashed on the way.
        """
        write_initrd(Path(self._wiring.initrd), self.files.segments, self.identity)
        timeout_s = self.plan.profile.boot_timeout_s * self.time_factor
        deadline = Deadline.after(timeout_s, f"the guest to boot ({timeout_s:.0f} s under {self.accelerator.name})")
        self.start()
        try:
            self.console.wait_for(READY, deadline, self.check)
            self.timings.ready = self._elapsed()
            self.ssh(deadline)
        except (DeadlineExceeded, GuestHang) as error:
            silent = f": {error.message}" if isinstance(error, GuestHang) else ""
            raise BootError(
                f"the guest did not come up in {timeout_s:.0f} s{silent}",
                layer=self.layer,
                tail=self.console.tail(),
                log=self.console.log,
                hint="the console's last lines say how far it came; a loaded host needs more time",
            ) from None
        self.timings.first_command = self._elapsed()

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._live.started, 3)

    def start(self, *, incoming: bool = False) -> None:
        """Start QEMU and open its monitor.

        :param incoming: whether QEMU waits for a saved state instead of booting.
        :raises HostError: QEMU cannot be started, or ends at once.
        """
        ours, theirs = socket.socketpair()
        self._starts += 1
        # QEMU truncates its log when it starts, so a restored machine gets another one.
        log = self.results / ("trace.log" if self._starts == 1 else f"trace-{self._starts}.log")
        with ExitStack() as stack, theirs:
            stack.callback(ours.close)
            wiring = replace(self._wiring, monitor_fd=theirs.fileno(), log=str(log), incoming=incoming)
            argv = qemu_argv(self.plan, wiring, self.accelerator.name)
            (self.results / "qemu.argv").write_text(shlex.join(argv) + "\n", encoding="utf-8")
            started = time.monotonic()
            process = Process(argv, output=self.qemu_output.log, cwd=self.results, pass_fds=[theirs.fileno()])
            stack.pop_all()  # the monitor closes it
        self.pids.append(process.pid)
        try:
            deadline = Deadline.after(_MONITOR_TIMEOUT_S, "QEMU's monitor")
            monitor = Monitor(ours, self.results / "qmp.jsonl", deadline)
        except MonitorLost as error:
            raise blame_age(self._silent(process), argv[0]) from error
        except BaseException:
            process.kill()
            raise
        self._running = _Running(process, monitor, Tracer(monitor, log), started)
        self.timings.monitor = self._elapsed()

    def _silent(self, process: Process) -> HarnessError:
        """Why QEMU does not talk. Its monitor closes a moment before its end is seen; if it does not end, end it."""
        status = process.wait(Deadline.after(_END_S, "QEMU to end"))
        if status is None:
            process.kill()
            return self._host_error("QEMU did not open its monitor")
        if status == 0 and not self.console.tail():
            return self._host_error("QEMU ended with exit status 0 before there was a guest")
        return self._qemu_ended(status)

    def kill(self) -> None:
        """End QEMU at once; there is nothing in a test guest worth shutting down for. Safe to call again."""
        running, self._running = self._running, None
        if running is None:
            return
        running.process.kill()
        with ExitStack() as stack:
            stack.callback(running.monitor.close)
            for connection in (running.ssh, running.probe):  # paramiko keeps a channel's pipe until it is closed itself
                if connection is not None:
                    stack.callback(connection.close)

    # -- what steps use ------------------------------------------------------------------------------------

    @property
    def _live(self) -> _Running:
        if self._running is None:
            raise HostError("the machine is not running", layer=self.layer)
        return self._running

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._live.process.pid

    def resident_bytes(self) -> int:
        """How much memory QEMU holds on this host."""
        return self._live.process.resident_bytes()

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor."""
        return self._live.monitor

    @property
    def tracer(self) -> Tracer:
        """QEMU's trace events."""
        return self._live.tracer

    def ssh(self, deadline: Deadline) -> Ssh:
        """The connection to the guest; made at first use."""
        live = self._live
        if live.ssh is None:
            live.ssh = Ssh.connect(
                self.monitor.forwarded_port(),
                self.identity,
                layer=self.layer,
                journal=self.journal,
                check=self.check,
                deadline=deadline,
            )
        return live.ssh

    def call(self, function: str, *, deadline: Deadline, **arguments: object) -> Any:
        """Call a probe function in the guest; the agent is started at first use."""
        return self.probe(deadline).call(function, deadline=deadline, **arguments)

    def probe(self, deadline: Deadline) -> Probe:
        """The guest's probe agent."""
        live = self._live
        if live.probe is None:
            live.probe = Probe(self.ssh(deadline), deadline)
        return live.probe

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """While the block runs, a guest that is stopped is no fault."""
        live = self._live
        live.pauses_expected = True
        try:
            yield
        finally:
            live.pauses_expected = False

    # -- health --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Look at the machine's consoles and at QEMU; called wherever the harness waits.

        A crash that the kernel survives is judged at the end; one that ends the machine is raised here.

        :raises GuestCrash: the guest panicked or reset itself.
        :raises BootError: it panicked because of its image or its command line.
        :raises HostError: QEMU ended or stopped by itself.
        """
        for console in self.consoles:
            for report in self._new_reports(console):
                self._raise_if_fatal(report, console)
        check_room(self.results)
        live = self._live
        status = live.process.poll()
        if status is not None:
            raise self._qemu_ended(status)
        if not live.pauses_expected and live.monitor.events("STOP"):
            state = live.monitor.execute("query-status")["status"]
            if state != "running":
                raise self._host_error(f"QEMU stopped the machine: {state}")

    @staticmethod
    def _new_reports(console: Console) -> list[Report]:
        """What a console shows now. What ends the machine may cut its own report short: a moment must do for it."""
        reports = console.poll()
        patience = Deadline.after(_REST_S, "the rest of a crash report")
        while (pending := console.pending) is not None and pending.severity is Severity.FATAL:
            if patience.expired:
                return [*reports, pending]
            time.sleep(_POLL_S)
            reports += console.poll()
        return reports

    def _host_error(self, message: str) -> HostError:
        return HostError(message, layer="qemu", tail=self.qemu_output.tail(), log=self.qemu_output.log)

    def _crash(self, report: Report, console: Console) -> HarnessError:
        """A crash that ends the machine, as the error that blames who is to blame."""
        wrong: type[HarnessError] = GuestCrash
        if report.blame is Blame.SETUP:
            wrong = HostError if console is self.qemu_output else BootError
        return wrong(report.title, layer=console.layer, tail=console.tail(), log=console.log)

    def _raise_if_fatal(self, report: Report, console: Console) -> None:
        if report.severity is not Severity.FATAL:
            return
        if self._tolerated(report):
            if self._is_up:
                raise ProvokedCrash(report.title, layer=console.layer, tail=console.tail(), log=console.log)
            return
        raise self._crash(report, console)

    def _qemu_ended(self, status: int) -> HarnessError:
        for console in self.consoles:
            for report in console.finish():
                if report.severity is Severity.FATAL and not self._tolerated(report):
                    return self._crash(report, console)
        reason = self._shutdown_reason() if status == 0 else ""
        if reason.startswith("host-"):
            ended = self._host_error("QEMU was told to end by a signal from outside")
            ended.may_pass = True
            return ended
        if status == 0:
            title = _ENDS.get(reason, "the machine reset or powered itself off")
            wrong = ProvokedCrash if self._is_up and self._end_is_provoked(title) else GuestCrash
            return wrong(title, layer=self.layer, tail=self.console.tail(), log=self.console.log)
        error = self._host_error(f"QEMU ended with {describe_exit(status)}")
        error.may_pass = status in _SIGNALS_FROM_OUTSIDE
        return error

    @property
    def _is_up(self) -> bool:
        """Whether steps can have provoked what happens now."""
        return self.timings.first_command > 0

    def _shutdown_reason(self) -> str:
        """Why a QEMU that ended well ended (QEMU's ``qapi/run-state.json``, ShutdownCause); empty if it did not say."""
        if self._running is None:
            return ""
        event = self._running.monitor.wait_event("SHUTDOWN", Deadline.after(_END_S, "QEMU's last words"))
        return "" if event is None else str(event["data"].get("reason", ""))

    def _end_is_provoked(self, title: str) -> bool:
        """Whether the scenario provokes a reset, or the panic that led to this one."""
        end = Report(self.layer, title, Severity.FATAL, Blame.PRODUCT, "machine-ended", 0, 0, ())
        fatal = [report for report in self.console.reports if report.severity is Severity.FATAL]
        return any(self._tolerated(report) for report in (*fatal, end))

    def explain(self, error: HarnessError) -> HarnessError:
        """What is behind an error that a step ran into: a crash, QEMU's end, a full disk; else the error itself.

        A connection breaks a moment before QEMU is seen to be gone, and a guest that hangs may be one whose QEMU does
        not run.
        """
        if self._running is None or isinstance(error, GuestCrash | ProvokedCrash):
            return error
        broken = isinstance(error, LostConnection | HostError)
        patience = Deadline.after(_END_S if broken else 0, "QEMU to end")
        while True:
            try:
                self.check()
            except HarnessError as cause:
                same = type(cause) is type(error) and cause.message == error.message
                return error if same else cause
            if patience.expired:
                break
            time.sleep(_POLL_S)
        if self._live.process.is_stopped():
            return HostError(
                f"QEMU does not run: something stopped it (SIGSTOP), and so {error.message}",
                layer="qemu",
                hint=f"who stopped process {self.pid}? A debugger, a full session quota, a frozen container?",
            )
        if isinstance(error, GuestHang | LostConnection | DeadlineExceeded):
            error.layer, error.tail = error.layer or self.layer, error.tail or self.console.tail()
            error.log = error.log or self.console.log
            error.hint = error.hint or HINTS.get(type(error))
        return error
