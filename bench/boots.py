"""From QEMU's start to the first command: the harness against a plain shell script, in turns.

Both start the same QEMU with the same images. The script does what a person would who knows this guest: it waits until
the console says that the guest is up, and then uses ``ssh``. Warm, both go on from a saved state of the same machine.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.figures import in_turns, show
from harness.deadline import Deadline
from harness.guest.identity import Identity
from harness.machine.accel import Accelerator
from harness.machine.initrd import write_initrd
from harness.machine.machine import BootFiles, Machine, write_disks
from harness.machine.scratch import scratch_directory
from harness.machine.snapshot import fork, take_up
from harness.machine.spec import Plan, Wiring, qemu_argv
from harness.under_test import stock
from harness.workspace import Workspace

COLD = """\
{qemu} >{console} 2>&1 </dev/null &
qemu=$!
trap 'kill -9 $qemu' EXIT
until grep -qs 'harness: ready' {console}; do kill -0 $qemu && sleep 0.02 || exit; done
until {ssh} true 2>/dev/null; do kill -0 $qemu && sleep 0.02 || exit; done
"""

#: A state that was saved while the machine ran goes on by itself.
WARM = """\
{qemu} -incoming 'exec:cat {state}; touch {read}' >{console} 2>&1 </dev/null &
qemu=$!
trap 'kill -9 $qemu' EXIT
until [ -e {read} ]; do kill -0 $qemu && sleep 0.02 || exit; done
until {ssh} true 2>/dev/null; do kill -0 $qemu && sleep 0.02 || exit; done
"""


_PATIENCE_S = 240.0


@dataclass(frozen=True)
class Subject:
    """A machine that is booted again and again."""

    plan: Plan
    files: BootFiles
    accelerator: Accelerator


@dataclass(frozen=True)
class Saved:
    """A machine's saved state, and who it was.

    :param running: the same, saved while it ran.
    """

    state: Path
    running: Path
    identity: Identity


def subject(workspace: Workspace, name: str) -> Subject:
    """A profile's machine with its first kernel and no modules but the early ones."""
    profile = workspace.profiles[name]
    files = stock(workspace.images, profile).boot_files(profile)
    return Subject(Plan.of(profile), files, workspace.accelerator("auto", profile.arch))


@contextmanager
def not_started(machine: Subject) -> Iterator[Machine]:
    """The harness's own machine; nothing of it outlives the block."""
    with (
        tempfile.TemporaryDirectory() as results,
        scratch_directory() as scratch,
        Machine(machine.plan, machine.files, machine.accelerator, results=Path(results), scratch=scratch) as made,
    ):
        yield made


def with_harness(machine: Subject) -> float:
    """Seconds from before QEMU's start until the harness has the answer to its first command."""
    with not_started(machine) as running:
        started = time.monotonic()
        running.boot()
        deadline = Deadline.after(_PATIENCE_S, "the first command")
        running.ssh(deadline).run(["true"], deadline=deadline)
        return time.monotonic() - started


def with_harness_warm(machine: Subject, saved: Saved) -> float:
    """The same, from a saved machine, which becomes one of its own."""
    with not_started(machine) as running:
        started = time.monotonic()
        deadline = Deadline.after(_PATIENCE_S, "the first command")
        take_up(running, saved.state, saved.identity, deadline)
        running.ssh(deadline).run(["true"], deadline=deadline)
        return time.monotonic() - started


def save(machine: Subject, directory: Path) -> Saved:
    """A saved machine for both sides."""
    with not_started(machine) as running:
        running.boot()
        saved = Saved(directory / "state", directory / "running", running.identity)
        fork(running, saved.state, Deadline.after(_PATIENCE_S, "the machine to be saved"))
        running.disconnect()
        monitor = running.monitor
        monitor.forget("MIGRATION")
        with saved.running.open("wb") as file:
            monitor.send_fd("running", file.fileno())
            monitor.execute("migrate", {"uri": "fd:running"})
            deadline = Deadline.after(_PATIENCE_S, "the running machine to be saved")
            ended = monitor.wait_event("MIGRATION", deadline, lambda event: event["data"]["status"] == "completed")
        assert ended is not None, "the running machine could not be saved"
        return saved


def with_script(machine: Subject, saved: Saved | None = None) -> float:
    """Seconds from before QEMU's start until a plain script has the answer to its first command.

    :param saved: the machine to go on from; None boots it.
    """
    identity = saved.identity if saved else Identity.generate()
    with scratch_directory() as scratch:
        write_initrd(scratch / "initrd", machine.files.segments, identity)
        key, known, console = scratch / "key", scratch / "known_hosts", scratch / "console"
        key.touch(mode=0o600)
        key.write_text(identity.client_private_openssh())
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        known.write_text(f"[127.0.0.1]:{port} {identity.known_hosts_key()}\n")
        wiring = Wiring(
            kernel=str(machine.files.kernel),
            initrd=str(scratch / "initrd"),
            hypervisor=None if machine.files.hypervisor is None else str(machine.files.hypervisor),
            disk=None if machine.files.loader is None else str(scratch / "boot-disk"),
            drives=str(scratch),
        )
        write_disks(machine.plan, machine.files, wiring)
        qemu = shlex.join(qemu_argv(machine.plan, wiring, machine.accelerator.name))
        qemu = qemu.replace("127.0.0.1:0-:22", f"127.0.0.1:{port}-:22")
        ssh = (
            f"ssh -i {key} -o UserKnownHostsFile={known} -o ConnectTimeout=5 -o BatchMode=yes -p {port} root@127.0.0.1"
        )
        script = scratch / "plain.sh"
        if saved is None:
            script.write_text(COLD.format(qemu=qemu, ssh=ssh, console=console))
        else:
            qemu = qemu.replace("spawn=deny", "spawn=allow").replace("-serial mon:stdio", "-serial file:/dev/null")
            script.write_text(
                WARM.format(qemu=qemu, ssh=ssh, console=console, state=saved.running, read=scratch / "read")
            )
        started = time.monotonic()
        subprocess.run(["setpriv", "--pdeathsig", "KILL", "sh", str(script)], check=True)
        return time.monotonic() - started


def bench(workspace: Workspace, profiles: Sequence[str], rounds: int) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Boots and restores of each profile in turn, by script and by harness: every measurement, in seconds."""
    print("\nQEMU's start to the first command", flush=True)
    for name in profiles:
        machine = subject(workspace, name)
        with tempfile.TemporaryDirectory(dir=workspace.store.root) as directory:
            saved = save(machine, Path(directory))
            sides = {
                "script cold": partial(with_script, machine),
                "harness cold": partial(with_harness, machine),
                "script warm": partial(with_script, machine, saved),
                "harness warm": partial(with_harness_warm, machine, saved),
            }
            measured = in_turns(sides, rounds)
        show(name, measured)
        yield name, measured
