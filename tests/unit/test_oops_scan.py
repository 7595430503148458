"""The scanner: bytes in any pieces, bounded memory, and text that is safe to show."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.oops import Kind, Report, Scanner, sanitize, scan, tail_lines
from harness.oops.text import LINE_CHARS

LOGS = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "oops_logs").glob("*.txt"))}
HELD_BYTES = 256 * 1024
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

WARNING = b"""\
[   12.000000] ------------[ cut here ]------------
[   12.000001] WARNING: CPU: 0 PID: 1 at fs/x.c:1 foo+0x1/0x2
[   12.000002] Call Trace:
[   12.000003]  bar+0x1/0x2
[   12.000004] ---[ end trace 0000000000000000 ]---
"""


def everything(data: bytes, kind: str = Kind.LINUX, cuts: tuple[int, ...] = ()) -> list[Report]:
    """All reports of a log that comes in pieces."""
    scanner = Scanner("guest", kind)
    found: list[Report] = []
    for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        found += scanner.feed(data[begin:end])
    found += scanner.finish()
    assert scanner.pending is None
    assert tuple(found) == scanner.reports
    return found


fragments = st.one_of(
    st.sampled_from([line + b"\n" for data in LOGS.values() for line in data.splitlines()]),
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"\x00", b"\x1b[31m", b"\x1b]0;x", b"(XEN) ", b"[    1.234567] ", b"login: ", b"BUG"]
    ),
    st.binary(max_size=40),
)


@st.composite
def pieces(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> tuple[bytes, tuple[int, ...]]:
    """A log and where it is cut."""
    log = draw(data)
    cuts = draw(st.lists(st.integers(0, len(log)), max_size=12))
    return log, tuple(sorted(cuts))


@given(pieces(st.sampled_from(list(LOGS.values()))), st.sampled_from(list(Kind)))
@settings(max_examples=150, deadline=None)
def test_reports_do_not_depend_on_the_pieces(log: tuple[bytes, tuple[int, ...]], kind: Kind) -> None:
    data, cuts = log
    assert everything(data, kind, cuts) == everything(data, kind)


@given(pieces(st.lists(fragments, max_size=60).map(b"".join)), st.sampled_from(list(Kind)))
@settings(max_examples=150, deadline=None)
def test_reports_of_any_bytes_do_not_depend_on_the_pieces(log: tuple[bytes, tuple[int, ...]], kind: Kind) -> None:
    data, cuts = log
    assert everything(data, kind, cuts) == everything(data, kind)


@given(pieces(st.lists(fragments, max_size=40).map(b"".join)), st.integers(8, 200))
@settings(max_examples=150, deadline=None)
def test_where_long_lines_are_cut_does_not_depend_on_the_pieces(
    log: tuple[bytes, tuple[int, ...]], line_bytes: int
) -> None:
    data, cuts = log
    with mock.patch.object(scan, "LINE_BYTES", line_bytes):
        assert everything(data, Kind.LINUX, cuts) == everything(data, Kind.LINUX)


@pytest.mark.parametrize("name", ["x86-null-dereference", "xen-page-fault", "qemu-glib", "ppc64-hard-lockup"])
def test_byte_by_byte(name: str) -> None:
    kind = name.partition("-")[0] if name.startswith(("xen", "qemu")) else Kind.LINUX
    data = LOGS[name]
    assert everything(data, kind, tuple(range(1, len(data)))) == everything(data, kind)


@given(st.binary(max_size=4000), st.sampled_from(list(Kind)))
@settings(deadline=None)
def test_any_bytes_are_taken(data: bytes, kind: Kind) -> None:
    for report in everything(data, kind):
        assert not any(map(UNSAFE.search, (report.title, *report.text)))


@given(pieces(st.lists(fragments, max_size=60).map(b"".join)))
@settings(deadline=None)
def test_a_report_says_where_it_is(log: tuple[bytes, tuple[int, ...]]) -> None:
    data, cuts = log
    for report in everything(data, Kind.LINUX, cuts):
        assert report.offset == 0 or data[report.offset - 1 : report.offset] == b"\n"
        assert report.line == data.count(b"\n", 0, report.offset) + 1


def test_the_text_lies_between_cut_here_and_end_trace() -> None:
    [report] = everything(b"[   11.000000] before\n" + WARNING + b"[   13.000000] after\n")
    assert report.text == tuple(WARNING.decode().splitlines())
    assert (report.line, report.layer) == (3, "guest")
    assert (b"[   11.000000] before\n" + WARNING)[report.offset :].startswith(b"[   12.000001] WARNING")


def test_without_an_end_the_text_is_a_bounded_number_of_lines() -> None:
    log = b"[    1.000000] BUG: workqueue lockup - pool\n" + b"[    1.000001] more\n" * 1000
    scanner = Scanner("guest", Kind.LINUX)
    [report] = scanner.feed(log)
    assert len(report.text) == 121
    assert scanner.pending is None


def test_a_line_of_text_is_bounded_and_so_is_the_text() -> None:
    [report] = everything(b"[    1.000000] BUG: workqueue lockup\n" + (b"x" * 5000 + b"\n") * 100)
    assert max(map(len, report.text)) == LINE_CHARS
    assert sum(map(len, report.text)) < scan.REPORT_TEXT_BYTES + LINE_CHARS


def test_what_is_found_is_pending_until_its_text_is_whole() -> None:
    first, second, rest = WARNING.partition(b"[   12.000002]")
    scanner = Scanner("dom0", Kind.LINUX)
    assert scanner.feed(first) == []
    assert scanner.pending is not None
    assert scanner.pending.title == "WARNING in foo"
    assert scanner.reports == ()
    [report] = scanner.feed(second + rest)
    assert scanner.pending is None
    assert scanner.reports == (report,)
    assert scanner.finish() == []


def test_the_title_of_what_is_pending_gets_better() -> None:
    scanner = Scanner("guest", Kind.LINUX)
    scanner.feed(b"[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n")
    assert scanner.pending is not None
    assert scanner.pending.title == "BUG: kernel NULL pointer dereference"
    scanner.feed(b"[    1.000001] RIP: 0010:foo+0x1/0x2\n")
    assert scanner.pending is not None
    assert scanner.pending.title == "BUG: kernel NULL pointer dereference in foo"


def test_a_trigger_needs_its_whole_line() -> None:
    scanner = Scanner("guest", Kind.LINUX)
    scanner.feed(b"[    1.000000] Kernel panic - not syncing: Fatal exception")
    assert scanner.pending is None
    [report] = scanner.finish()
    assert report.title == "kernel panic: Fatal exception"
    assert scanner.finish() == []


def test_the_next_crash_ends_the_one_before() -> None:
    [first, second] = everything(
        b"[    1.000000] INFO: task a:1 blocked for more than 120 seconds.\n"
        b"[    1.000001]  foo+0x1/0x2\n"
        b"[    1.000002] INFO: task b:2 blocked for more than 120 seconds.\n"
        b"[    1.000003]  bar+0x1/0x2\n"
    )
    assert (first.title, second.title) == ("hung task in foo", "hung task in bar")
    assert (len(first.text), len(second.text)) == (2, 2)


def test_an_oops_of_its_own_does_not_join_a_hung_task() -> None:
    found = everything(
        b"[    1.000000] INFO: task a:1 blocked for more than 120 seconds.\n"
        b"[    1.000001]  foo+0x1/0x2\n"
        b"[    1.000002] Oops: 0000 [#1] PREEMPT SMP\n"
    )
    assert [report.title for report in found] == ["hung task in foo", "Oops"]


def test_cut_here_without_a_crash_is_nothing() -> None:
    scanner = Scanner("guest", Kind.LINUX)
    scanner.feed(b"[    1.000000] ------------[ cut here ]------------\n" + b"[    1.000001] x\n" * 1000)
    assert scanner.held_bytes == 0
    assert scanner.finish() == []


def test_a_crash_behind_a_long_unfinished_line() -> None:
    [report] = everything(b"." * 2000 + b"[    1.000000] kernel BUG at fs/x.c:1!\n")
    assert report.text == ("[    1.000000] kernel BUG at fs/x.c:1!",)


def test_a_crash_in_a_line_without_end() -> None:
    flood = b"." * (3 * scan.LINE_BYTES)
    [report] = everything(b"x\n" + flood + b"[    1.000000] kernel BUG at fs/x.c:1!\n" + flood)
    assert (report.title, report.line) == ("kernel BUG at fs/x.c", 2)


def test_a_cut_does_not_begin_a_line() -> None:
    """Without timestamps a crash counts at the start of a line only, and the second piece of a long line is none."""
    assert everything(b"." * scan.LINE_BYTES + b"kernel BUG at fs/x.c:1!\n") == []


def test_a_timestamp_across_a_cut_is_none_in_any_pieces() -> None:
    log = b"0123456789ab[    1.000000] x\nkernel BUG at fs/x.c:1!\n"
    with mock.patch.object(scan, "LINE_BYTES", 32):
        assert everything(b"." * 16 + log, Kind.LINUX, tuple(range(1, 60))) == everything(b"." * 16 + log)
        assert len(everything(b"." * 16 + log)) == 1
        assert everything(b"." * 32 + log) == []


def test_a_prelude_ends_when_others_talk() -> None:
    scanner = Scanner("xen", Kind.XEN)
    scanner.feed(b"(XEN) ----[ Xen-4.20.0  x86_64  debug=y  Not tainted ]----\n(XEN) RIP: e008:[<0>] foo+0x1/0x2\n")
    assert scanner.held_bytes > 0
    scanner.feed(b"dom0 talks\n" * 200)
    assert scanner.held_bytes == 0
    scanner.feed(b"(XEN) Panic on CPU 0:\n(XEN) FATAL PAGE FAULT\n")
    assert [report.title for report in scanner.finish()] == ["Xen: Panic on CPU: FATAL PAGE FAULT"]


def test_a_long_prelude_leaves_room_for_the_report() -> None:
    dump = b"(XEN) ----[ Xen-4.20.0  x86_64  debug=y  Not tainted ]----\n(XEN) RIP:    e008:[<0>] foo+0x1/0x2\n"
    log = dump + (b"(XEN)    " + b"0" * 380 + b"\n") * 100 + b"(XEN) Panic on CPU 0:\n(XEN) FATAL PAGE FAULT\n"
    assert [report.title for report in everything(log, Kind.XEN)] == ["Xen: Panic on CPU: FATAL PAGE FAULT in foo"]


def test_after_a_snapshot_the_first_boot_is_a_reboot() -> None:
    boot = b"[    0.000000] Booting Linux on physical CPU 0x0\n[    0.000000] Linux version 6.6.51 (x)\n"
    assert everything(boot) == []
    scanner = Scanner("guest", Kind.LINUX, booted=True)
    [report] = scanner.feed(b"[   99.000000] x\n" + boot)
    assert report.title == "rebooted by itself"
    assert len(scanner.feed(boot)) == 1


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="windows"):
        Scanner("guest", "windows")


def test_a_flood_of_crashes_is_counted() -> None:
    scanner = Scanner("guest", Kind.LINUX)
    found = [report for _ in range(50) for report in scanner.feed(WARNING * 10)]
    assert len(found) == len(scanner.reports) == 100
    assert scanner.dropped == 400
    assert scanner.pending is None
    assert {report.title for report in found} == {"WARNING in foo"}
    assert found[99].line == 99 * 5 + 2


def test_titles_stay_the_same_when_there_is_no_room_for_text() -> None:
    crash = LOGS["x86-kasan-use-after-free"] + b"[    1.000000] x" * 100 + b"\n"
    found = everything(crash * 40)
    assert len({report.title for report in found}) == 2
    assert len(found[-2].text) == 1
    assert "BUG: KASAN" in found[-2].text[0]


@pytest.mark.parametrize(
    "block",
    [
        b"[   12.345678] an ordinary line of a kernel that says much\r\n" * 1000,
        b"x" * 65536,
        b"\0" * 65536,
        b"[   12.345678] BUG: one crash a line, and each another " + b"y" * 3000 + b"\n",
        b"[   12.345678] BUG: KASAN: use-after-free in foo+0x1/0x2\n" + "\u20ac".encode() * 100_000,
        (b"[   12.345678] ------------[ cut here ]------------\n" + b"\xe2\x82\xac" * 300 + b"\n") * 20,
        WARNING * 20,
    ],
    ids=["ordinary", "endless-line", "zeros", "crashes", "long-behind-crash", "preludes", "warnings"],
)
def test_memory_does_not_grow_with_the_log(block: bytes) -> None:
    scanner = Scanner("guest", Kind.LINUX)
    scanner.feed(block)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(60):
            scanner.feed(block)
            assert scanner.held_bytes <= HELD_BYTES
        assert tracemalloc.get_traced_memory()[0] - before <= HELD_BYTES
    finally:
        tracemalloc.stop()
    scanner.finish()
    assert scanner.held_bytes <= HELD_BYTES


def test_ordinary_blocks_are_not_read_line_by_line() -> None:
    """What keeps a flood cheap: no line of an ordinary log is looked at by itself."""
    scanner = Scanner("guest", Kind.LINUX)
    with mock.patch.object(Scanner, "_read") as read:
        scanner.feed(b"[   12.345678] virtio_net virtio0 eth0: renamed from enp0s1 ACPI: [LNKA] IRQ 11\r\n" * 50_000)
    read.assert_not_called()
    assert scanner.held_bytes == 0


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        (b"two\r\nlines\r\n", "two\nlines\n"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b[?25l\x1b[2J\x1b[10;20Hcursor", "cursor"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1bPdevice control\x1b\\text", "text"),
        (b"\x1b(Bcharset\x1bM", "charset"),
        (b"\x1b]never ends\nnext", "never ends\nnext"),
        (b"\x1b[31", "31"),
        (b"\x1b\x1b[31m[31mx", "[31mx"),
        ("\x9b31mred".encode(), "red"),
        (b"bell\x07 null\x00 delete\x7f back\x08", "bell null delete back"),
        (b"a\tb", "a       b"),
        ("caf\u00e9 \u20ac".encode(), "caf\u00e9 \u20ac"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\u202eright to left\u2066\u2028".encode(), "right to left"),
    ],
)
def test_sanitize(raw: bytes, shown: str) -> None:
    assert sanitize(raw) == shown


def test_sanitize_takes_text_too() -> None:
    assert sanitize("\x1b[1mbold\x1b[0m\r \udc80") == "bold "


@given(st.one_of(st.text(), st.binary(), st.lists(fragments).map(b"".join)))
def test_what_is_sanitized_is_inert(raw: str | bytes) -> None:
    shown = sanitize(raw)
    assert not UNSAFE.search(shown.replace("\n", ""))
    assert sanitize(shown) == shown
    shown.encode()


def test_tail_lines() -> None:
    data = b"".join(b"line %d\r\n" % number for number in range(100))
    assert tail_lines(data, 3) == ("line 97", "line 98", "line 99")
    assert len(tail_lines(data)) == 20
    assert tail_lines(b"one\n\n\x1b[0mtwo\n\n\r\n\x1b[0m\n") == ("one", "", "two")
    assert tail_lines(b"") == tail_lines(b"\n\n") == tail_lines(b"x", 0) == ()
    assert tail_lines(b"login: ") == ("login:",)


@given(st.lists(fragments).map(b"".join), st.integers(-1, 30))
def test_tail_lines_are_few_short_and_safe(data: bytes, count: int) -> None:
    lines = tail_lines(data, count)
    assert len(lines) <= max(0, count)
    assert not any(map(UNSAFE.search, lines))
    assert all(len(line) <= LINE_CHARS for line in lines)
