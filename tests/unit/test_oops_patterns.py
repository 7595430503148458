"""The crash signatures, on logs as real consoles show them and on lines that only look like crashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from harness.oops import PATTERNS, Blame, Kind, Pattern, Report, Scanner, Severity, dialect
from harness.oops.dialect import DIALECTS

LOGS = Path(__file__).parent / "oops_logs"


@dataclass(frozen=True, slots=True)
class Log:
    """A log of ``oops_logs/``: its header says what the scanner must find in the rest, in order."""

    name: str
    kind: str
    crashes: tuple[tuple[str, str, str], ...]
    data: bytes


def read_log(path: Path) -> Log:
    """Read a log: header lines begin with ``# ``, and TITLE, SEVERITY and BLAME come once for each report."""
    header: list[tuple[str, str]] = []
    rest = path.read_bytes()
    while rest.startswith(b"# "):
        line, _, rest = rest.partition(b"\n")
        key, _, value = line[2:].decode().partition(": ")
        header.append((key, value))
    values = {key: [value for other, value in header if other == key] for key, _ in header}
    crashes = tuple(
        zip(values.get("TITLE", []), values.get("SEVERITY", []), values.get("BLAME", []), strict=True),
    )
    assert bool(crashes) != ("CLEAN" in values), f"{path.name}: either TITLE or CLEAN"
    return Log(path.stem, values["KIND"][0], crashes, rest)


ALL_LOGS = [read_log(path) for path in sorted(LOGS.glob("*.txt"))]


def scan(data: bytes, kind: str = Kind.LINUX) -> list[Report]:
    scanner = Scanner("guest", kind)
    return [*scanner.feed(data), *scanner.finish()]


def titles(text: str, kind: str = Kind.LINUX) -> list[str]:
    return [report.title for report in scan(text.encode(), kind)]


def test_there_are_enough_logs() -> None:
    clean = [log for log in ALL_LOGS if not log.crashes]
    assert len(ALL_LOGS) - len(clean) >= 40
    assert len(clean) >= 10


@pytest.mark.parametrize("log", ALL_LOGS, ids=lambda log: log.name)
def test_a_log_gives_its_reports(log: Log) -> None:
    found = [(report.title, report.severity.value, report.blame.value) for report in scan(log.data, log.kind)]
    assert found == list(log.crashes)


@pytest.mark.parametrize("log", [log for log in ALL_LOGS if log.crashes], ids=lambda log: log.name)
def test_a_log_as_a_serial_console_carries_it(log: Log) -> None:
    """Carriage returns, colours and stray NULs, which lines that are shown must not have."""
    noisy = b"\x1b[2J\x1b[H" + log.data.replace(b"\n", b"\x1b[0m\r\r\n\x00")
    found = scan(noisy, log.kind)
    assert [report.title for report in found] == [title for title, _, _ in log.crashes]
    for report in found:
        assert report.text
        assert all(line.isprintable() for line in (report.title, *report.text))


@pytest.mark.parametrize("log", [log for log in ALL_LOGS if log.crashes], ids=lambda log: log.name)
def test_the_same_crash_again_has_the_same_title(log: Log) -> None:
    """Another boot: other timestamps, addresses, processes, CPUs and, after a rebuild, other offsets."""
    text = log.data.decode()
    text = re.sub(r"\[ *\d+\.(\d{6})\]", r"[ 4711.\1]", text)
    text = re.sub(r"\b(ffff|c00)[0-9a-f]{13}\b|\b(ffff|c00)[0-9a-f]{12}\b", "ffffdeadbeef0123", text)
    text = re.sub(r"\+0x[0-9a-f]+/0x[0-9a-f]+", "+0x1234/0x5678", text)
    text = re.sub(r"CPU: +\d+", "CPU: 7", text)
    text = re.sub(r"CPU ?#?\d+", lambda match: re.sub(r"\d+", "7", match[0]), text)
    text = re.sub(r"PID: \d+", "PID: 9999", text)
    text = re.sub(r"Comm: \S+", "Comm: other", text)
    text = re.sub(r"(\[ *)T\d+\]", r"\1T9999]", text)
    assert titles(text, log.kind) == [title for title, _, _ in log.crashes]


@pytest.mark.parametrize(
    "log", [log for log in ALL_LOGS if log.kind == Kind.XEN and log.crashes], ids=lambda log: log.name
)
@pytest.mark.parametrize(
    "stamp", ["", "[   12.345678] ", "[2026-01-01 10:00:00] ", "[2026-01-01 10:00:00.123] ", "[000001f2ab03c4d5] "]
)
def test_xen_says_the_same_with_any_timestamp(log: Log, stamp: str) -> None:
    bare = re.sub(r"\(XEN\) \[[\d .:-]+\] ", "(XEN) ", log.data.decode())
    assert titles(bare.replace("(XEN) ", f"(XEN) {stamp}"), log.kind) == [title for title, _, _ in log.crashes]


def test_every_pattern_has_a_log() -> None:
    found = {report.pattern for log in ALL_LOGS for report in scan(log.data, log.kind)}
    # These only continue another's report in the logs, or only begin one under other words; see the next test.
    alone = {"linux-trap", "linux-oops", "linux-unhandled-fault", "linux-locks-held", "xen-ubsan-warn"}
    assert {pattern.name for pattern in PATTERNS} - found - alone == set()


@pytest.mark.parametrize(
    ("message", "pattern", "title"),
    [
        ("Oops: 0000 [#1] PREEMPT SMP", "linux-trap", "Oops"),
        ("stack segment: 0000 [#1] SMP", "linux-trap", "stack segment"),
        ("invalid opcode: 0000 [#1] SMP", "linux-trap", "invalid opcode"),
        ("Oops: Oops: 0002 [#3] PREEMPT SMP", "linux-trap", "Oops"),
        ("Oops [#1]", "linux-oops", "Oops"),
        ("Oops - illegal instruction [#1]", "linux-oops", "Oops"),
        ("Unhandled fault: external abort on non-linefetch (0x1008) at 0xb6f3c000", "linux-unhandled-fault",
         "Unhandled fault: external abort on non-linefetch"),
        ("WARNING: probe/402 still has locks held!", "linux-locks-held", "locks held by an exiting task"),
        ("INFO: suspicious RCU usage.", "linux-suspicious-rcu", "suspicious RCU usage"),
        ("WARNING: inconsistent lock state", "linux-lockdep", "inconsistent lock state"),
        ("WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected", "linux-lockdep",
         "SOFTIRQ-safe -> SOFTIRQ-unsafe lock order"),
        ("BUG: KASAN: null-ptr-deref on address (null)", "linux-kasan", "KASAN: null-ptr-deref"),
        ("WARNING: at kernel/softirq.c:159 local_bh_enable+0x7e/0x90()", "linux-warning", "WARNING in local_bh_enable"),
        ("WARNING: CPU: 0 PID: 1 at fs/x.c:12 0xffffffffc0123456", "linux-warning", "WARNING at fs/x.c"),
        ("WARNING: /root/build/drivers/xen/privcmd.c:12 at 0x0, CPU#0: probe/402", "linux-warning",
         "WARNING at drivers/xen/privcmd.c"),
        ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 3", "linux-hard-lockup", "hard lockup"),
        ("NMI watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [probe:402]", "linux-soft-lockup", "BUG: soft lockup"),
        ("INFO: rcu_sched detected stalls on CPUs/tasks:", "linux-rcu-stall", "INFO: rcu detected stall"),
        ("Kernel panic - not syncing", "linux-panic", "kernel panic"),
        ("Kernel panic - not syncing: Requested init /x failed (error -2).", "linux-no-init",
         "kernel panic: No working init found"),
        ("Kernel panic - not syncing: Couldn't open N_TTY ldisc for ptm1 --- error -12.", "linux-panic",
         "kernel panic: Couldn't open N_TTY ldisc for ptm1 --- error -N."),
        ("BUG: Bad rss-counter state mm:00000000d3c9a1b4 type:MM_FILEPAGES val:1", "linux-bad-page",
         "BUG: Bad rss-counter state"),
        ("BUG: rwlock bad magic on CPU#0, probe/402", "linux-spinlock", "BUG: rwlock bad magic"),
    ],
)  # fmt: skip
def test_a_first_line_alone_names_the_crash(message: str, pattern: str, title: str) -> None:
    [report] = scan(f"[   12.345678] {message}\n".encode())
    assert (report.pattern, report.title) == (pattern, title)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_a_pattern_is_well_formed(pattern: Pattern) -> None:
    assert pattern.name.startswith(f"{pattern.kind}-")
    assert re.fullmatch(r"[a-z][a-z0-9-]+", pattern.name)
    assert pattern.needles
    assert all(DIALECTS[pattern.kind].prefilter.search(needle) for needle in pattern.needles)
    assert not pattern.joins or pattern.family, "what joins must say what it belongs to"
    known = {*pattern.regex.groupindex, *(pattern.detail.groupindex if pattern.detail else ())}
    assert set(re.findall(r"\{(\w+)\}", pattern.title)) <= known


def test_pattern_names_are_unique() -> None:
    names = [pattern.name for pattern in PATTERNS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("exitcode", "blame"),
    [
        ("0x00007f00", Blame.SETUP),  # the interpreter or a command is missing
        ("0x00007e00", Blame.SETUP),  # it cannot be executed
        ("0x00000100", Blame.SETUP),  # a script of the image gave up
        ("0x00000000", Blame.SETUP),  # it came to its end
        ("0x0000000b", Blame.PRODUCT),  # killed: segmentation fault
        ("0x00000009", Blame.PRODUCT),
        ("0x00000084", Blame.PRODUCT),  # killed: illegal instruction, with a core dump
    ],
)
def test_who_is_to_blame_when_init_ends(exitcode: str, blame: Blame) -> None:
    [report] = scan(
        f"[    1.234567] Kernel panic - not syncing: Attempted to kill init! exitcode={exitcode}\n".encode()
    )
    assert report.title == "kernel panic: Attempted to kill init!"
    assert (report.severity, report.blame) == (Severity.FATAL, blame)


@pytest.mark.parametrize(
    "prefix",
    [
        "[    0.000000] ",
        "[   12.345678] ",
        "[123456.345678] ",
        "[    1.234567][  T123] ",
        "[    1.234567][    C0] ",
        "<4>[    1.234567] ",
        "<4>[    1.234567][    T1] ",
        "guest login: [    1.234567] ",
        "a program's words without an end[    1.234567] ",
        "[    0.000001] echoed: [    1.234567] ",
        "\x1b[0;32m\r[    1.234567] ",
        "(d3) [    1.234567] ",
    ],
)
def test_the_kernel_is_known_by_its_timestamp(prefix: str) -> None:
    assert titles(f"[    0.000000] x\n{prefix}WARNING: CPU: 0 PID: 1 at fs/x.c:1 foo+0x1/0x2\n") == ["WARNING in foo"]


@pytest.mark.parametrize(
    "prefix",
    ["", " ", "<4>", "[  T123] ", "probe: ", "this is not a ", "[12.3] ", "[   12.345678]", "(XEN) [    1.234567] "],
)
def test_a_program_is_not_the_kernel(prefix: str) -> None:
    assert titles(f"[    0.000000] x\n{prefix}WARNING: CPU: 0 PID: 1 at fs/x.c:1 foo+0x1/0x2\n") == []


@pytest.mark.parametrize("prefix", ["", "<4>", "[  T123] ", "<4>[    C0] "])
def test_a_kernel_without_timestamps_is_believed_when_it_cannot_be_a_program(prefix: str) -> None:
    assert titles(f"{prefix}WARNING: CPU: 0 PID: 1 at fs/x.c:1 foo+0x1/0x2\n") == ["WARNING in foo"]
    assert titles(f"{prefix}WARNING: something\n{prefix}BUG: something\n") == []
    assert titles(f"said by probe: {prefix}WARNING: CPU: 0 PID: 1 at fs/x.c:1 foo+0x1/0x2\n") == []


def test_the_first_timestamp_ends_belief_in_lines_without() -> None:
    crash = "kernel BUG at fs/x.c:1!\n"
    assert titles(crash + "[    1.234567] x\n" + crash + crash) == ["kernel BUG at fs/x.c"]


def test_a_message_in_the_middle_of_a_kernel_line_is_none() -> None:
    assert titles("[    1.234567] probe: WARNING: CPU: 0 PID: 1 at fs/x.c:1 foo+0x1/0x2\n") == []


def test_the_ignore_list_is_needed() -> None:
    [log] = [log for log in ALL_LOGS if log.name == "clean-ignored"]
    with mock.patch.object(dialect, "IGNORED", ()):
        assert len(scan(log.data)) == 7


def test_what_dom0_says_on_xens_console_is_not_xens() -> None:
    assert titles("Panic on CPU 0:\n[    1.234567] Xen BUG at a.c:1\n", Kind.XEN) == []


def test_what_xen_says_on_dom0s_console_is_not_dom0s() -> None:
    assert titles("(XEN) [    1.234567] BUG: foo\n(XEN) kernel BUG at fs/x.c:1!\n") == []


def test_a_relayed_domain_does_not_reboot_dom0() -> None:
    boot = "[    0.000000] Linux version 6.6.51 (builder@host)\n"
    assert titles(boot + "(d1) " + boot + "(XEN) DOM2: " + boot) == []
    assert titles(boot + "(d1) " + boot + boot) == ["rebooted by itself"]


def test_qemu_speaks_at_the_start_of_a_line() -> None:
    assertion = "qemu-system-x86_64: ../hw/x.c:12: x_realize: Assertion `x' failed.\n"
    assert titles(assertion, Kind.QEMU) == ["QEMU: assertion failed in x_realize"]
    assert titles(f"the last run said {assertion}", Kind.QEMU) == []


def test_a_harder_word_for_the_same_panic_wins() -> None:
    """Xen prints the panic's cause behind ``Panic on CPU``; the report goes by the cause, and blames whom it blames."""
    text = "(XEN) Panic on CPU 0:\n(XEN) Could not construct domain 0\n"
    [report] = scan(text.encode(), Kind.XEN)
    assert (report.pattern, report.blame, report.line) == ("xen-no-dom0", Blame.SETUP, 1)
