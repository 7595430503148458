"""What a Xen machine's consoles show, and what its domains boot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.guest.ssh import Completed
from harness.machine.console import Console
from harness.machine.domain_console import DomainConsole
from harness.machine.initrd import DOMAIN_INITRD, DOMAIN_KERNEL, DomainFiles, write_initrd
from harness.oops import Severity

PANIC = b"[    9.000000] Kernel panic - not syncing: Attempted to be tested\r\n"
PANIC_ENDS = b"[    9.000001] ---[ end Kernel panic - not syncing: Attempted to be tested ]---\r\n"
XEN_PANIC = b"(XEN) Panic on CPU 0:\r\n(XEN) tested to death\r\n(XEN) Reboot in five seconds...\r\n"


def soon() -> Deadline:
    return Deadline.after(30, "the test")


# -- dom0's console, which is Xen's as well ----------------------------------------------------------------------------


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console("dom0", "linux", tmp_path / "console.log", also=[("xen", "xen")])


def test_each_layers_crashes_are_its_own(console: Console) -> None:
    console.log.write_bytes(b"(XEN) Xen version 4.20\r\n" + PANIC + PANIC_ENDS + XEN_PANIC)
    seen = [(report.layer, report.title) for report in console.poll()]
    assert seen == [
        ("dom0", "kernel panic: Attempted to be tested"),
        ("xen", "Xen: Panic on CPU: tested to death"),
    ]
    assert console.reports == console.finish()


def test_the_worst_of_what_is_not_whole_yet(console: Console) -> None:
    console.log.write_bytes(b"[    1.000000] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\r\n")
    console.poll()
    assert console.pending is not None
    assert (console.pending.layer, console.pending.severity) == ("dom0", Severity.WARNING)
    with console.log.open("ab") as file:
        file.write(b"(XEN) Panic on CPU 0:\r\n")
    console.poll()
    assert (console.pending.layer, console.pending.severity) == ("xen", Severity.FATAL)
    assert console.ends_machine


# -- a domain's --------------------------------------------------------------------------------------------------------


class Stream:
    def __init__(self) -> None:
        self.coming = b""
        self.closed = False

    def read(self) -> bytes:
        data, self.coming = self.coming, b""
        return data

    def close(self) -> None:
        self.closed = True


class Ssh:
    """A dom0 that has a file, and lets it be followed."""

    def __init__(self) -> None:
        self.file = b""
        self.followed: list[int] = []
        self.streams: list[Stream] = []

    def stream(self, argv: list[str], deadline: Deadline) -> Stream:
        assert argv[:2] == ["sh", "-c"]
        assert argv[5] == "/log"
        self.followed.append(int(argv[4]))
        self.streams.append(Stream())
        return self.streams[-1]

    def run(self, argv: list[str], *, deadline: Deadline, check_status: bool) -> Completed:
        assert argv[:2] == ["tail", "-c"]
        return Completed(tuple(argv), 0, self.file[int(argv[2]) - 1 :], b"", 0.0)


def test_a_domains_console_comes_as_it_grows(tmp_path: Path) -> None:
    console = DomainConsole("guest", tmp_path / "log", "/log")
    ssh: Any = Ssh()
    assert console.poll() == []
    console.follow(ssh, soon())
    ssh.streams[0].coming = b"hello\n" + PANIC
    assert console.poll() == []
    assert console.pending is not None
    ssh.streams[0].coming = PANIC_ENDS
    (report,) = console.poll()
    assert (report.layer, report.title) == ("guest", "kernel panic: Attempted to be tested")
    assert not console.ends_machine
    # a new connection goes on where the old one ended, with what came in between
    ssh.streams[0].coming = b"between\n"
    console.follow(ssh, soon())
    whole = b"hello\n" + PANIC + PANIC_ENDS + b"between\n"
    assert ssh.followed == [1, len(whole) + 1]
    assert console.log.read_bytes() == whole


def test_the_rest_is_brought_at_the_end(tmp_path: Path) -> None:
    console = DomainConsole("guest", tmp_path / "log", "/log")
    ssh: Any = Ssh()
    console.follow(ssh, soon())
    ssh.streams[0].coming = b"first\n"
    ssh.file = b"first\nlast words\n"
    console.catch_up(ssh, soon())
    assert ssh.streams[0].closed
    ssh.streams[0].coming = b"last words\n"
    assert console.finish() == ()
    assert console.log.read_bytes() == ssh.file


# -- what domains boot -------------------------------------------------------------------------------------------------


def unpacked(archives: bytes) -> dict[str, bytes]:
    """The regular files of concatenated cpio archives (kernel's buffer-format.rst)."""
    files, at = {}, 0
    while (at := archives.find(b"070701", at)) >= 0:
        fields = [int(archives[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archives[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) // 4 * 4
        if fields[1] & 0o170000 == 0o100000:
            files[name] = archives[start : start + fields[6]]
        at = start + fields[6]
    return files


def test_what_domains_boot_is_carried_in_the_initramfs(tmp_path: Path) -> None:
    for name in ("root", "kernel", "domain-root", "domain-modules"):
        (tmp_path / name).write_bytes(name.encode())
    domain = DomainFiles(tmp_path / "kernel", (tmp_path / "domain-root", tmp_path / "domain-modules"))
    write_initrd(tmp_path / "initrd", [tmp_path / "root"], None, domain)
    files = unpacked((tmp_path / "initrd").read_bytes())
    assert files[DOMAIN_KERNEL] == b"kernel"
    # each archive begins at a multiple of four
    assert files[DOMAIN_INITRD] == b"domain-root\0domain-modules\0\0"
    write_initrd(tmp_path / "initrd", [tmp_path / "root"], None)
    assert DOMAIN_KERNEL not in unpacked((tmp_path / "initrd").read_bytes())
