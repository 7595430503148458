"""Reading a console that may say anything, in any pieces, and talking to who sits behind it."""

from __future__ import annotations

import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.deadline import Deadline, DeadlineExceeded
from harness.errors import GuestCrash, HostError
from harness.machine import console as console_module
from harness.machine.console import Console, ConsoleFlood

MIB = 1 << 20
PANIC = b"[    1.000000] Kernel panic - not syncing: Attempted to be tested\r\n"
PANIC_ENDS = b"[    1.000001] ---[ end Kernel panic - not syncing: Attempted to be tested ]---\r\n"


def soon() -> Deadline:
    """A deadline that only a hang reaches."""
    return Deadline.after(30, "the test")


@pytest.fixture
def console(tmp_path: Path) -> Console:
    """A guest's console that has not said anything."""
    return Console("guest", "linux", tmp_path / "console.log", tmp_path / "console")


def say(console: Console, data: bytes) -> None:
    """Print on the console."""
    with console.log.open("ab") as file:
        file.write(data)


def polls(console: Console) -> Callable[[], None]:
    """What a machine does while it waits."""

    def look() -> None:
        console.poll()

    return look


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_a_console_that_is_not_there_yet(console: Console) -> None:
    assert console.poll() == []
    assert console.tail() == ()
    assert console.finish() == ()


def test_a_crash_is_given_once(console: Console) -> None:
    say(console, b"hello\r\n" + PANIC + PANIC_ENDS)
    (report,) = console.poll()
    assert (report.layer, report.title) == ("guest", "kernel panic: Attempted to be tested")
    assert console.poll() == []
    assert console.reports == (report,)
    assert console.finish() == (report,)


def test_a_crash_that_is_being_told(console: Console) -> None:
    say(console, PANIC)
    assert console.poll() == []
    assert console.reports == ()
    assert console.pending is not None
    say(console, PANIC_ENDS)
    assert len(console.poll()) == 1
    assert console.pending is None


def test_a_crash_that_is_cut_off_is_there_at_the_end(console: Console) -> None:
    say(console, PANIC.rstrip())
    assert console.poll() == []
    assert [report.title for report in console.finish()] == ["kernel panic: Attempted to be tested"]


@settings(deadline=None)
@given(st.lists(st.integers(1, len(PANIC + PANIC_ENDS)), max_size=6))
def test_pieces_make_no_difference(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    console = Console("guest", "linux", tmp_path_factory.mktemp("pieces") / "log")
    data, seen = PANIC + PANIC_ENDS, []
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        say(console, data[begin:end])
        seen += console.poll()
    assert len(seen) == 1


# -- markers -----------------------------------------------------------------------------------------------------------


def test_a_marker_that_is_there(console: Console) -> None:
    say(console, b"boot\r\nharness: ready\r\n")
    console.wait_for(b"harness: ready", soon(), polls(console))


@pytest.mark.parametrize("cut", range(1, len(b"harness: ready")))
def test_a_marker_in_two_pieces(console: Console, cut: int) -> None:
    marker = b"harness: ready"
    pieces = iter([b"x" * 100 + marker[:cut], marker[cut:] + b"\r\n"])

    def look() -> None:
        say(console, next(pieces))
        console.poll()

    console.wait_for(marker, soon(), look)


def test_a_marker_in_pieces_of_a_byte(console: Console) -> None:
    marker = b"aab"
    pieces = iter(b"aaab")

    def look() -> None:
        say(console, bytes([next(pieces)]))
        console.poll()

    console.wait_for(marker, soon(), look)


def test_a_marker_across_the_blocks_of_one_read(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "_BLOCK_BYTES", 7)
    say(console, b"x" * 100 + b"harness: ready" + b"y" * 100)
    console.wait_for(b"harness: ready", soon(), polls(console))


def test_a_marker_of_the_past_does_not_count(console: Console) -> None:
    """After a restore, ``ready`` of the first boot is still in the log."""
    say(console, b"harness: ready\r\n")
    console.poll()
    with pytest.raises(DeadlineExceeded, match="timed out waiting for the guest"):
        console.wait_for(b"harness: ready", Deadline.after(0.1, "the guest"), polls(console))


def test_half_a_marker_of_an_earlier_wait_does_not_count(console: Console) -> None:
    say(console, b"harness: ")
    with pytest.raises(DeadlineExceeded):
        console.wait_for(b"harness: ready", Deadline.after(-1, "the guest"), polls(console))
    say(console, b"ready")
    with pytest.raises(DeadlineExceeded):
        console.wait_for(b"harness: ready", Deadline.after(-1, "the guest"), polls(console))


def test_a_look_is_taken_even_when_time_is_up(console: Console) -> None:
    say(console, b"harness: ready\r\n")
    console.wait_for(b"harness: ready", Deadline.after(-1, "the guest"), polls(console))


def test_who_looks_may_give_up(console: Console) -> None:
    def crashed() -> None:
        raise GuestCrash("kernel panic")

    with pytest.raises(GuestCrash):
        console.wait_for(b"harness: ready", soon(), crashed)


# -- floods ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [b"[    1.000000] the same thing over and over\r\n" * (MIB // 45), b"x" * MIB, PANIC[:-2] * (MIB // len(PANIC))],
    ids=["lines", "one line", "crashes without an end"],
)
def test_a_flood_of_200_mb_needs_little_memory(console: Console, block: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "FLOOD_BYTES", 64 * MIB)
    with console.log.open("wb") as file:
        for _ in range(200):
            file.write(block)
    tracemalloc.start()
    try:
        with pytest.raises(ConsoleFlood, match="more than 64 MiB") as caught:
            console.poll()
        with pytest.raises(ConsoleFlood):
            console.poll()
        console.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB
    assert (caught.value.layer, caught.value.log) == ("guest", console.log)
    assert caught.value.hint is not None
    assert sum(map(len, caught.value.tail)) < 20 * 500
    assert console._position <= 66 * MIB
    console.log.unlink()


def test_a_flood_is_noticed_as_it_grows(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "FLOOD_BYTES", MIB)
    say(console, b"x" * MIB)
    assert console.poll() == []
    say(console, b"x")
    with pytest.raises(ConsoleFlood):
        console.poll()


def test_what_came_before_a_flood_is_kept(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "FLOOD_BYTES", MIB)
    say(console, PANIC + PANIC_ENDS + b"x\n" * MIB)
    with pytest.raises(ConsoleFlood):
        console.poll()
    assert [report.title for report in console.finish()] == ["kernel panic: Attempted to be tested"]


# -- tails -------------------------------------------------------------------------------------------------------------


def test_the_last_lines(console: Console) -> None:
    say(console, b"".join(b"line %d\r\n" % number for number in range(100_000)))
    assert console.tail(3) == ("line 99997", "line 99998", "line 99999")
    assert len(console.tail()) == 20


def test_the_last_lines_are_safe_to_show(console: Console) -> None:
    say(console, b"\x1b[31mred\x1b[0m\r\n\x07\xff\xfe\r\nend\r\n")
    assert console.tail() == ("red", "\N{REPLACEMENT CHARACTER}" * 2, "end")


def test_the_last_lines_come_from_a_small_part(console: Console) -> None:
    with console.log.open("wb") as file:
        file.truncate(10 << 30)  # sparse: reading it all would take a while, and 10 GiB
        file.seek(0, 2)
        file.write(b"\nend\r\n")
    assert console.tail(1) == ("end",)


# -- dialogues ---------------------------------------------------------------------------------------------------------


@contextmanager
def listener(console: Console, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Somebody behind the console's socket."""

    def accept() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            serve(connection)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(console._socket_path))
        server.listen(1)
        thread = Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def echo(connection: socket.socket) -> None:
    """A terminal: what is typed comes back."""
    while data := connection.recv(4096):
        connection.sendall(data.replace(b"\r", b"\r\n"))


def test_a_dialogue(console: Console) -> None:
    with listener(console, echo), console.dialogue() as dialogue:
        dialogue.send_line("uname -r 6.12")
        assert dialogue.expect(r"\d+\.\d+", soon()) == "6.12"
        dialogue.send_line("again é")
        assert dialogue.expect("again é", soon()) == "again é"


def test_what_was_matched_is_safe_to_show(console: Console) -> None:
    with listener(console, lambda peer: peer.sendall(b"a\x1b[2Jb\x07c")), console.dialogue() as dialogue:
        assert dialogue.expect("a.*c", soon()) == "abc"


def test_an_answer_in_pieces(console: Console) -> None:
    def slowly(connection: socket.socket) -> None:
        for byte in b"login: ":
            connection.sendall(bytes([byte]))

    with listener(console, slowly), console.dialogue() as dialogue:
        assert dialogue.expect("login: ", soon()) == "login: "


@pytest.mark.parametrize("seconds", [-1, 0, 0.1])
def test_an_answer_that_does_not_come(console: Console, seconds: float) -> None:
    say(console, b"last line\r\n")
    with listener(console, echo), console.dialogue() as dialogue:
        dialogue.send_line("something else")
        with pytest.raises(DeadlineExceeded, match=r"did not show 'prompt\$'") as caught:
            dialogue.expect("prompt$", Deadline.after(seconds, "the console"))
    assert caught.value.layer == "guest"
    assert caught.value.tail == ("last line",)
    assert caught.value.log == console.log


def test_an_answer_that_drowns_in_a_flood(console: Console) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"flood\r\n" * 1000)

    with listener(console, flood), console.dialogue() as dialogue, pytest.raises(DeadlineExceeded):
        dialogue.expect("prompt", Deadline.after(0.3, "the console"))


def test_a_hostile_pattern_takes_no_longer(console: Console) -> None:
    """Python's own regular expressions would need years for this one."""

    def say_and_listen(peer: socket.socket) -> None:
        peer.sendall(b"a" * 5000 + b"b")
        peer.recv(1)

    with listener(console, say_and_listen), console.dialogue() as dialogue:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            dialogue.expect("(a+)+c", Deadline.after(0.5, "the console"))
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("unread", [False, True], ids=["all read", "something unread"])
def test_a_console_that_is_closed(console: Console, unread: bool) -> None:
    """Where something was not read, the kernel gives ECONNRESET and no end of file."""

    def leave(connection: socket.socket) -> None:
        connection.recv(100, socket.MSG_PEEK if unread else 0)

    with listener(console, leave), console.dialogue() as dialogue:
        dialogue.send_line("hello")
        with pytest.raises(HostError, match="connection broke") as caught:
            dialogue.expect("prompt", soon())
        with pytest.raises(HostError):
            for _ in range(100):
                dialogue.send_line("hello")
    assert caught.value.layer == "guest"


def test_a_console_that_nobody_serves(console: Console) -> None:
    with pytest.raises(HostError, match="cannot reach the console"), console.dialogue():
        pass
    with pytest.raises(HostError, match="nobody can type"), Console("qemu", "qemu", console.log).dialogue():
        pass
