"""``harness shell``: a scenario's machine, booted and loaded, for a person."""

from __future__ import annotations

import socket
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console

from harness.deadline import Deadline
from harness.guest.terminal import join, window
from harness.machine.accel import Request
from harness.machine.machine import Machine
from harness.scenario.model import Scenario
from harness.testbed import Testbed
from harness.workspace import Workspace


def open_shell(
    console: Console,
    workspace: Workspace,
    scenario: Scenario,
    accel: Request,
    under_test: list[str],
    *,
    on_console: bool,
) -> None:
    """Boot and load the scenario, then join the person's terminal to it; all is gone when the person leaves.

    :raises HarnessError: as booting and loading do.
    """
    workspace.sweep()
    profile = workspace.profiles[scenario.boot.machine]
    overrides = workspace.overrides(under_test)
    accelerator = workspace.accelerator(accel, profile.arch)
    results = Path("results").absolute() / f"shell-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    results.mkdir(parents=True, exist_ok=True)
    console.print(f"{scenario.id}: booting under {accelerator.name} ({accelerator.why})", markup=False, soft_wrap=True)
    with Testbed(scenario, profile, workspace.images, accelerator, results, overrides, workspace.saved) as testbed:
        testbed.prepare()
        testbed.await_room(lambda: console.print("waiting for other machines to end"))
        testbed.boot()
        for module in testbed.load():
            console.print(f"loaded {module.module} in {module.layer}", markup=False)
        _say_how(console, testbed.machine, testbed.scratch, results)
        if on_console:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
                stream.connect(str(testbed.machine.console_socket))
                join(stream, testbed.machine.check)
        else:
            channel = testbed.machine.ssh(Deadline.after(30, "a shell")).open_shell(
                window() if sys.stdin.isatty() else None
            )
            join(channel, testbed.machine.check)
    console.print("the machine is gone; its logs are in", results, markup=False, soft_wrap=True)


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
