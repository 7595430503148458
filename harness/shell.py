"""``harness shell``: a scenario's machine, booted and loaded, for a person."""

from __future__ import annotations

import socket
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console

from harness.deadline import Deadline
from harness.errors import LostConnection
from harness.guest.terminal import End, join, window
from harness.machine.accel import Request
from harness.machine.machine import Machine
from harness.reproduce import Wanted
from harness.result_files import new_directory
from harness.runner import explained
from harness.testbed import Testbed
from harness.workspace import Workspace

#: How long a shell may take to start, and a console may be silent after a script's input; longer under emulation.
_PATIENCE_S = 15.0


def open_shell(
    console: Console,
    workspace: Workspace,
    wanted: Wanted,
    accel: Request,
    *,
    on_console: bool,
    cold: bool,
) -> None:
    """Boot and load what is wanted, then join the person's terminal to it; all is gone when the person leaves.

    :param accel: ``auto`` leaves the choice to what is wanted, where that says.
    :raises HarnessError: as booting and loading do.
    """
    workspace.sweep()
    scenario = wanted.scenario
    profile = workspace.profiles[scenario.boot.machine]
    accelerator = workspace.accelerator(accel if accel != "auto" else wanted.accel or accel, profile.arch)
    results = new_directory(Path("results").absolute(), f"shell-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
    console.print(f"{scenario.id}: booting under {accelerator.name} ({accelerator.why})", markup=False, soft_wrap=True)
    saved = None if cold else workspace.saved
    with Testbed(scenario, profile, workspace.images, accelerator, results, wanted.overrides, saved) as testbed:
        testbed.prepare()
        wanted.check_tested(testbed.tested)
        testbed.await_room(lambda: console.print("waiting for other machines to end"))
        with explained(testbed):
            testbed.boot()
            loaded = testbed.load()
            wanted.check_loaded(loaded)
            for module in loaded:
                console.print(f"loaded {module.module} in {module.layer}", markup=False)
            _say_how(console, testbed.machine, testbed.scratch, results)
            if _join(testbed.machine, on_console=on_console) is End.BROKEN:
                what = "console's" if on_console else "SSH"
                raise LostConnection(f"the {what} connection broke", layer=testbed.machine.layer)
    console.print("the machine is gone; its logs are in", results, markup=False, soft_wrap=True)


def _join(machine: Machine, *, on_console: bool) -> End:
    """Join the person's terminal to the machine's console, or to a shell in it."""
    patience_s = _PATIENCE_S * machine.time_factor
    if on_console:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.connect(str(machine.console_socket))
            return join(stream, machine.check, patience_s=patience_s)
    size = window() if sys.stdin.isatty() else None
    channel = machine.ssh(Deadline.after(patience_s, "a shell")).open_shell(size)
    return join(channel, machine.check, patience_s=patience_s)


def _say_how(console: Console, machine: Machine, scratch: Path, results: Path) -> None:
    """Other ways in, for a second terminal, as long as this one stays."""
    key, known = scratch / "key", scratch / "known_hosts"
    key.touch(mode=0o600)
    key.write_text(machine.identity.client_private_openssh())
    port = machine.monitor.forwarded_port()
    known.write_text(f"[127.0.0.1]:{port} {machine.identity.known_hosts_key()}\n")
    lines = (
        f"ssh:     ssh -i {key} -o UserKnownHostsFile={known} -p {port} root@127.0.0.1",
        f"console: socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{machine.console_socket}",
        f"log:     {results}/console-{machine.layer}.log",
        "Ctrl-] or the shell's exit ends the machine.",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
