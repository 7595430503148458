"""A running machine: QEMU with its monitor, its console, its traces, and the guest behind them."""

from __future__ import annotations

import secrets
import shlex
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.deadline import Deadline, DeadlineExceeded
from harness.errors import BootError, GuestHang, HarnessError, HostError
from harness.guest.identity import Identity
from harness.guest.probe import Probe
from harness.guest.ssh import Journal, Ssh
from harness.machine.accel import Accelerator
from harness.machine.boot_disk import check_table, disk_of, write_disk
from harness.machine.console import Console
from harness.machine.domain_console import DomainConsole
from harness.machine.drives import write_drive
from harness.machine.health import END_S, Health
from harness.machine.initrd import DomainFiles, write_initrd
from harness.machine.process import Process
from harness.machine.qmp import Monitor, MonitorLost
from harness.machine.remedies import blame_age
from harness.machine.spec import Plan, Wiring, qemu_argv
from harness.machine.trace import Tracer
from harness.oops import Report

READY = b"harness: ready"
_MONITOR_TIMEOUT_S = 30
_LAST_WORDS_S = 1.0


@dataclass(slots=True)
class Timings:
    """What the start of a machine cost, in seconds from QEMU's start."""

    monitor: float = 0.0
    ready: float = 0.0
    first_command: float = 0.0


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What QEMU boots: a kernel and the segments that make up its initramfs, in order.

    :param hypervisor: what goes under the kernel.
    :param loader: the boot loader that loads all of it, where QEMU does not.
    :param domain: what the domains of the hypervisor boot; it is carried in the initramfs.
    :param elf: the kernel as an ELF file, where ``kernel`` is compressed for a loader.
    """

    kernel: Path
    segments: tuple[Path, ...]
    hypervisor: Path | None = None
    domain: DomainFiles | None = None
    loader: Path | None = None
    elf: Path | None = None

    @property
    def every(self) -> tuple[Path, ...]:
        """All of them."""
        more = tuple(path for path in (self.hypervisor, self.loader) if path is not None)
        return (self.kernel, *self.segments, *more, *(() if self.domain is None else self.domain.every))


@dataclass(slots=True)
class _Running:
    """What exists only while QEMU runs."""

    process: Process
    monitor: Monitor
    tracer: Tracer
    started: float
    ssh: Ssh | None = None
    probe: Probe | None = None
    stack: ExitStack = field(default_factory=ExitStack)


def new_mac() -> str:
    """An address for a network card, of those that QEMU has for itself."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def write_disks(plan: Plan, files: BootFiles, wiring: Wiring) -> None:
    """Make the files that a machine's disks are kept in. A saved machine has not written to them yet."""
    for name, drive in plan.profile.drives.items():
        write_drive(Path(wiring.drives) / name, drive.size_mib << 20)
    if wiring.disk is not None:
        initrd = None if plan.until is not None else Path(wiring.initrd)
        write_disk(Path(wiring.disk), disk_of(plan, files, initrd))


class Machine:
    """One guest under QEMU. A context manager: QEMU does not outlive the block.

    :param results: directory for logs; they stay.
    :param scratch: directory for sockets and temporary files; it goes.
    :param tolerated: whether a crash report is one that the scenario provokes on purpose.

    ``agent_stays`` says whether the guest has a probe agent that does not go with its connection.
    """

    def __init__(
        self,
        plan: Plan,
        files: BootFiles,
        accelerator: Accelerator,
        *,
        results: Path,
        scratch: Path,
        tolerated: Callable[[Report], bool] = lambda _: False,
    ) -> None:
        self.plan = plan
        self.files = files
        self.accelerator = accelerator
        self.layer = layer = plan.profile.layer
        self.results = results
        self.identity = Identity.generate()
        self.timings = Timings()
        self.journal = Journal(results / "ssh.jsonl")
        self.console_socket = scratch / "console"
        also = [("xen", "xen")] if plan.profile.hypervisor else []
        self.console = Console(layer, "linux", results / f"console-{layer}.log", self.console_socket, also)
        self.qemu_output = Console("qemu", "qemu", results / "qemu.log")
        self.health = Health(layer, (self.console, self.qemu_output), self.qemu_output, tolerated)
        self.scratch = scratch
        self.pids: list[int] = []
        self._running: _Running | None = None
        self._domain_consoles: list[DomainConsole] = []
        self.agent_stays = False
        self._starts = 0
        self._wiring = Wiring(
            kernel=str(files.kernel),
            initrd=str(scratch / "initrd"),
            hypervisor=None if files.hypervisor is None else str(files.hypervisor),
            disk=None if files.loader is None else str(scratch / "boot-disk"),
            drives=str(scratch),
            mac=new_mac(),
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
        return self.health.consoles

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    # -- start and end -------------------------------------------------------------------------------------

    def boot(self, also: Callable[[Monitor], None] = lambda _: None) -> None:
        """Start QEMU and wait until the guest takes commands, or until the console shows what the plan waits for.

        :param also: looks at the machine besides, and raises when waiting has become pointless.
        :raises HostError: QEMU cannot be started, or ended.
        :raises BootError: the guest is not there in time, or its image is at fault.
        :raises GuestCrash: the guest's kernel crashed on the way.
        """
        self.agent_stays = False
        until = self.plan.until
        if until is None:
            write_initrd(Path(self._wiring.initrd), self.files.segments, self.identity, self.files.domain)
        timeout_s = self.plan.profile.boot_timeout_s * self.time_factor
        deadline = Deadline.after(timeout_s, f"the guest to boot ({timeout_s:.0f} s under {self.accelerator.name})")
        self.start()

        def look() -> None:
            self.check()
            also(self.monitor)

        try:
            self.console.wait_for(READY if until is None else until.encode(), deadline, look)
            self.timings.ready = self.elapsed()
            if until is None:
                self.ssh(deadline)
        except (DeadlineExceeded, GuestHang) as error:
            silent = f": {error.message}" if isinstance(error, GuestHang) else ""
            missed = "the guest did not come up" if until is None else f"the console did not show {until!r}"
            raise BootError(
                f"{missed} in {timeout_s:.0f} s{silent}",
                layer=self.layer,
                tail=self.console.tail(),
                log=self.console.log,
                hint="the console's last lines say how far it came; a loaded host needs more time",
            ) from None
        if until is not None:
            self._stand_still()
            self.timings.first_command = self.timings.ready  # there is no command to wait for
        check_table(self.plan.dmar, self.console)
        if until is None:
            self.tracer.switch_off(*self.plan.trace)
            self.is_up()

    def _stand_still(self) -> None:
        """Stop the machine as it is, for steps to look at."""
        self._live.stack.enter_context(self.pausing())
        self.monitor.execute("stop")

    def is_up(self) -> None:
        """The guest takes commands; from now on it is steps that provoke what happens."""
        self.timings.first_command = self.elapsed()
        self.health.is_up = True

    def elapsed(self) -> float:
        """Seconds since QEMU's start."""
        return round(time.monotonic() - self._live.started, 3)

    def start(self, *, incoming: bool = False) -> None:
        """Start QEMU and open its monitor.

        :param incoming: whether QEMU waits for a saved state instead of booting.
        :raises HostError: QEMU cannot be started, or ends at once.
        """
        if incoming:  # what the guest once read from it is in its memory
            Path(self._wiring.initrd).touch()
        write_disks(self.plan, self.files, self._wiring)
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
        self.health.begin(process, monitor)
        self.timings.monitor = self.elapsed()

    def _silent(self, process: Process) -> HarnessError:
        """Why QEMU does not talk. Its monitor closes a moment before its end is seen; if it does not end, end it."""
        status = process.wait(Deadline.after(END_S, "QEMU to end"))
        if status is None:
            process.kill()
            return self.health.host_error("QEMU did not open its monitor")
        if status == 0 and not self.console.tail():
            return self.health.host_error("QEMU ended with exit status 0 before there was a guest")
        return self.health.qemu_ended(status)

    def kill(self) -> None:
        """End QEMU at once; there is nothing in a test guest worth shutting down for. Safe to call again."""
        running, self._running = self._running, None
        if running is None:
            return
        self.health.end()
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
        if self.plan.until is not None:
            raise HostError("no guest takes commands: the boot ends before there is one (boot.until)", layer=self.layer)
        if live.ssh is None:
            live.ssh = Ssh.connect(
                self.monitor.forwarded_port(),
                self.identity,
                layer=self.layer,
                journal=self.journal,
                check=self.check,
                deadline=deadline,
            )
            for console in self._domain_consoles:
                console.follow(live.ssh, deadline)
        return live.ssh

    def watch(self, console: DomainConsole) -> None:
        """Bring a domain's console here as it grows, and scan it for crashes."""
        self._domain_consoles.append(console)
        self.health.watch(console)

    def catch_up(self) -> None:
        """Bring what the domains' consoles have printed up to now; as far as the machine still talks."""
        live = self._running
        if live is None or live.ssh is None or not self._domain_consoles:
            return
        deadline = Deadline.after(_LAST_WORDS_S * self.time_factor, "the last words of domains")
        for console in self._domain_consoles:
            with suppress(HarnessError):
                console.catch_up(live.ssh, deadline)

    def call(self, function: str, *, deadline: Deadline, **arguments: Any) -> Any:
        """Call a probe function in the guest; the agent is started at first use."""
        return self.probe(deadline).call(function, deadline=deadline, **arguments)

    def probe(self, deadline: Deadline) -> Probe:
        """The guest's probe agent."""
        live = self._live
        if live.probe is None:
            live.probe = Probe(self.ssh(deadline), deadline, stayed=self.agent_stays)
        return live.probe

    def disconnect(self) -> None:
        """Close the connections to the guest. What needs one makes another."""
        live = self._live
        for connection in (live.probe, live.ssh):
            if connection is not None:
                connection.close()
        live.probe = live.ssh = None

    # -- health --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """See :meth:`Health.check`."""
        self.health.check()

    def explain(self, error: HarnessError) -> HarnessError:
        """See :meth:`Health.explain`."""
        return self.health.explain(error)

    def pausing(self) -> AbstractContextManager[None]:
        """See :meth:`Health.pausing`."""
        return self.health.pausing()
