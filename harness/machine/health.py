"""Whether a machine is well: its consoles, its QEMU, and who is to blame for what goes wrong with them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
from harness.machine.console import Console
from harness.machine.process import Process, describe_exit
from harness.machine.qmp import Monitor, MonitorLost
from harness.machine.remedies import HINTS
from harness.machine.scratch import check_room
from harness.oops import Blame, Report, Severity

#: Who kills QEMU with these is the OOM killer or a person, and may not do it again.
_SIGNALS_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
#: How long QEMU may take to be gone after its sockets have closed, on a host that does much else.
END_S = 5.0
#: How long the rest of a crash report may take that the end of the machine may have cut off.
_REST_S = 1.0
_POLL_S = 0.05
_ENDS = {"guest-reset": "the machine reset itself", "guest-shutdown": "the machine powered itself off"}


class ProvokedCrash(GuestError):
    """The machine has come to the end that the scenario provokes on purpose (``allow_crash``)."""


class Health:
    """Watches one machine.

    :param layer: the guest's name in errors.
    :param consoles: everything that is scanned for crashes, the guest's own first.
    :param qemu_output: what QEMU itself prints; one of the consoles.
    :param tolerated: whether a crash report is one that the scenario provokes on purpose.

    ``is_up`` says whether steps can have provoked what happens now.
    """

    def __init__(
        self, layer: str, consoles: Sequence[Console], qemu_output: Console, tolerated: Callable[[Report], bool]
    ) -> None:
        self.consoles = tuple(consoles)
        self.is_up = False
        self._layer = layer
        self._console = self.consoles[0]
        self._qemu_output = qemu_output
        self._tolerated = tolerated
        self._process: Process | None = None
        self._monitor: Monitor | None = None
        self._pauses_expected = False

    def watch(self, console: Console) -> None:
        """Scan one more console for crashes."""
        self.consoles = (*self.consoles, console)

    def begin(self, process: Process, monitor: Monitor) -> None:
        """A QEMU was started: it is what is watched from now on."""
        self._process, self._monitor = process, monitor

    def end(self) -> None:
        """QEMU is ended on purpose."""
        self._process = self._monitor = None

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """While the block runs, a guest that is stopped is no fault."""
        self._pauses_expected = True
        try:
            yield
        finally:
            self._pauses_expected = False
            if self._monitor is not None:
                self._monitor.forget("STOP")

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
        check_room(self._qemu_output.log.parent)
        if self._process is None or self._monitor is None:
            raise HostError("the machine is not running", layer=self._layer)
        status = self._process.poll()
        if status is not None:
            raise self.qemu_ended(status)
        if not self._pauses_expected and self._monitor.events("STOP"):
            state = self._state(self._process, self._monitor)
            if state != "running":
                raise self.host_error(f"QEMU stopped the machine: {state}")

    def _state(self, process: Process, monitor: Monitor) -> str:
        """What QEMU says of the machine; when it ends instead of answering, why."""
        try:
            return str(monitor.execute("query-status")["status"])
        except MonitorLost as error:
            status = process.wait(Deadline.after(END_S, "QEMU to end"))
            raise error if status is None else self.qemu_ended(status) from None

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

    def host_error(self, message: str) -> HostError:
        """A fault of QEMU, with its own last words."""
        return HostError(message, layer="qemu", tail=self._qemu_output.tail(), log=self._qemu_output.log)

    def _crash(self, report: Report, console: Console) -> HarnessError:
        """A crash that ends the machine, as the error that blames who is to blame."""
        wrong: type[HarnessError] = GuestCrash
        if report.blame is not Blame.PRODUCT:
            wrong = HostError if console is self._qemu_output or report.blame is Blame.EMULATOR else BootError
        return wrong(report.title, layer=report.layer, tail=console.tail(), log=console.log)

    def _raise_if_fatal(self, report: Report, console: Console) -> None:
        if report.severity is not Severity.FATAL:
            return
        if self._tolerated(report):
            if self.is_up and console.ends_machine:
                raise ProvokedCrash(report.title, layer=report.layer, tail=console.tail(), log=console.log)
            return
        raise self._crash(report, console)

    def qemu_ended(self, status: int) -> HarnessError:
        """Why QEMU ended with that status, as the error that blames who is to blame."""
        for console in self.consoles:
            for report in console.finish():
                if report.severity is Severity.FATAL and not self._tolerated(report):
                    return self._crash(report, console)
        reason = self._shutdown_reason() if status == 0 else ""
        if reason.startswith("host-"):
            ended = self.host_error("QEMU was told to end by a signal from outside")
            ended.may_pass = True
            return ended
        if status == 0:
            title = _ENDS.get(reason, "the machine reset or powered itself off")
            wrong = ProvokedCrash if self.is_up and self._end_is_provoked(title) else GuestCrash
            return wrong(title, layer=self._layer, tail=self._console.tail(), log=self._console.log)
        error = self.host_error(f"QEMU ended with {describe_exit(status)}")
        error.may_pass = status in _SIGNALS_FROM_OUTSIDE
        return error

    def _shutdown_reason(self) -> str:
        """Why a QEMU that ended well ended (QEMU's ``qapi/run-state.json``, ShutdownCause); empty if it did not say."""
        if self._monitor is None:
            return ""
        event = self._monitor.wait_event("SHUTDOWN", Deadline.after(END_S, "QEMU's last words"))
        return "" if event is None else str(event["data"].get("reason", ""))

    def _end_is_provoked(self, title: str) -> bool:
        """Whether the scenario provokes a reset, or the panic that led to this one."""
        end = Report(self._layer, title, Severity.FATAL, Blame.PRODUCT, "machine-ended", 0, 0, ())
        fatal = [report for report in self._console.reports if report.severity is Severity.FATAL]
        return any(self._tolerated(report) for report in (*fatal, end))

    def explain(self, error: HarnessError) -> HarnessError:
        """What is behind an error that a step ran into: a crash, QEMU's end, a full disk; else the error itself.

        A connection breaks a moment before QEMU is seen to be gone, and a guest that hangs may be one whose QEMU does
        not run.
        """
        if self._process is None or isinstance(error, GuestCrash | ProvokedCrash):
            return error
        broken = isinstance(error, LostConnection | HostError)
        patience = Deadline.after(END_S if broken else 0, "QEMU to end")
        while True:
            try:
                self.check()
            except HarnessError as cause:
                same = type(cause) is type(error) and cause.message == error.message
                return error if same else cause
            if patience.expired:
                break
            time.sleep(_POLL_S)
        if self._process.is_stopped():
            return HostError(
                f"QEMU does not run: something stopped it (SIGSTOP), and so {error.message}",
                layer="qemu",
                hint=f"who stopped process {self._process.pid}? A debugger, a full session quota, a frozen container?",
            )
        if isinstance(error, GuestHang | LostConnection | DeadlineExceeded):
            error.layer, error.tail = error.layer or self._layer, error.tail or self._console.tail()
            error.log = error.log or self._console.log
            error.hint = error.hint or HINTS.get(type(error))
        return error
