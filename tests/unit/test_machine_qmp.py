"""The monitor: commands, events, files handed over, and every way in which it can end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.machine.qmp import Monitor, MonitorLost, MonitorRefused
from tests.fake.fake_qemu import Monitor as Wire

Request = dict[str, Any]
Answer = Callable[[Wire, Request], "dict[str, Any] | None"]
GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


def soon(seconds: float = 30) -> Deadline:
    """A deadline that only a hang reaches."""
    return Deadline.after(seconds, "the test")


def obedient(_: Wire, request: Request) -> dict[str, Any]:
    """Give back what was asked."""
    return {"return": {"command": request["execute"], **request.get("arguments", {})}}


class FakeEnd:
    """QEMU's end of a socket pair, on a thread.

    :param answer: what it answers to a command; None closes the monitor.
    :param greets: whether it says hello.
    """

    def __init__(self, answer: Answer = obedient, greets: bool = True) -> None:
        self.ours, theirs = socket.socketpair()
        self.asked: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._answer = answer
        self._wire = Wire(theirs.detach())
        self._greets = greets
        self._thread = Thread(target=self._serve, name="fake-end")
        self._thread.start()

    def _serve(self) -> None:
        with self._wire._socket, suppress(OSError):
            if self._greets:
                self._wire.send(GREETING)
            for request in self._wire.requests():
                command = request["execute"]
                self.asked.append(command)
                answer = {"return": {}} if command == "qmp_capabilities" else self._answer(self._wire, request)
                if answer is None:
                    return
                if answer:
                    self._wire.send({**answer, **({"id": request["id"]} if "id" in request else {})})

    def event(self, name: str, **data: object) -> None:
        """Something happens in QEMU."""
        self._wire.event(name, **data)

    def close(self) -> None:
        """QEMU is gone."""
        with suppress(OSError):
            self._wire._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()


class Room:
    """Monitors and their other ends, all of them closed with the test."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.transcript = directory / "qmp.jsonl"
        self._stack = stack

    def end(self, answer: Answer = obedient, *, greets: bool = True) -> FakeEnd:
        """A QEMU."""
        end = FakeEnd(answer, greets)
        self._stack.callback(end.close)
        return end

    def monitor(self, end: FakeEnd, deadline: Deadline | None = None) -> Monitor:
        """A monitor of it."""
        monitor = Monitor(end.ours, self.transcript, deadline or soon())
        self._stack.callback(monitor.close)
        return monitor

    def open(self, answer: Answer = obedient) -> tuple[Monitor, FakeEnd]:
        """A monitor, and its other end."""
        end = self.end(answer)
        return self.monitor(end), end

    def told(self) -> list[dict[str, Any]]:
        """The transcript."""
        return [json.loads(line) for line in self.transcript.read_text().splitlines()]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    """Where monitors are."""
    with ExitStack() as stack:
        yield Room(tmp_path, stack)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_a_command_gives_what_qemu_returns(room: Room) -> None:
    monitor, end = room.open()
    assert monitor.execute("balloon", {"value": 5}) == {"command": "balloon", "value": 5}
    assert monitor.execute("query-status") == {"command": "query-status"}
    assert end.asked == ["qmp_capabilities", "balloon", "query-status"]


def test_a_command_that_qemu_refuses(room: Room) -> None:
    def refuse(_: Wire, request: Request) -> dict[str, Any]:
        return {"error": {"class": "CommandNotFound", "desc": f"no {request['execute']}"}}

    monitor, _ = room.open(refuse)
    with pytest.raises(MonitorRefused, match="QMP frobnicate: no frobnicate") as caught:
        monitor.execute("frobnicate")
    assert caught.value.error_class == "CommandNotFound"
    assert isinstance(caught.value, HostError)


def test_a_command_of_the_human_monitor(room: Room) -> None:
    def human(_: Wire, request: Request) -> dict[str, Any]:
        assert request["execute"] == "human-monitor-command"
        return {"return": f"you said {request['arguments']['command-line']}\r\n"}

    monitor, _ = room.open(human)
    assert monitor.human("info usernet") == "you said info usernet\r\n"


def test_which_qemu_and_which_port(room: Room) -> None:
    usernet = "  TCP[HOST_FORWARD]  11       127.0.0.1 {}       10.0.2.15    22     0     0\r\n"
    texts = iter(
        [usernet.format(33021), usernet.format("    7"), usernet.format(5).replace("127.0.0.1", "0.0.0.0"), ""]
    )

    def answer(_: Wire, request: Request) -> dict[str, Any]:
        if request["execute"] == "query-version":
            return {"return": {"qemu": {"micro": 1, "minor": 2, "major": 10}, "package": ""}}
        return {"return": next(texts)}

    monitor, _ = room.open(answer)
    assert monitor.qemu_version() == "10.2.1"
    assert (monitor.forwarded_port(), monitor.forwarded_port()) == (33021, 7)
    for _ in range(2):
        with pytest.raises(HostError, match="port"):
            monitor.forwarded_port()


def test_each_network_has_a_port_of_its_own(room: Room) -> None:
    line = "  TCP[HOST_FORWARD]  11       127.0.0.1 {}       {}     7     0     0\r\n"

    def answer(_: Wire, request: Request) -> dict[str, Any]:
        if request["execute"] == "qom-get":
            assert request["arguments"] == {"path": "/machine/peripheral/nic1", "property": "mac"}
            return {"return": "52:54:00:12:34:57"}
        return {"return": "Hub -1 (net0):\r\n" + line.format(4000, "10.0.2.15") + line.format(4001, "10.0.3.15")}

    monitor, _ = room.open(answer)
    assert (monitor.forwarded_port(), monitor.forwarded_port("10.0.3.15")) == (4000, 4001)
    with pytest.raises(HostError, match=r"to 10\.0\.4\.15"):
        monitor.forwarded_port("10.0.4.15")
    assert monitor.mac_of("nic1") == "52:54:00:12:34:57"


def test_an_answer_of_a_megabyte(room: Room) -> None:
    monitor, _ = room.open(lambda _, request: {"return": "x" * (1 << 20)})
    assert len(monitor.execute("query-qmp-schema")) == 1 << 20


def test_commands_of_several_threads(room: Room) -> None:
    monitor, _ = room.open()
    answers: list[int] = []

    def ask(first: int) -> None:
        answers.extend(monitor.execute("x", {"number": first + number})["number"] for number in range(20))

    threads = [Thread(target=ask, args=(100 * number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(100 * thread + number for thread in range(5) for number in range(20))


def test_two_monitors_at_once(room: Room) -> None:
    first, _ = room.open(lambda _, request: {"return": 1})
    second, _ = room.open(lambda _, request: {"return": 2})
    assert [monitor.execute("x") for monitor in (first, second, first)] == [1, 2, 1]


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_is_handed_over(room: Room, tmp_path: Path) -> None:
    read: list[bytes] = []

    def take(wire: Wire, request: Request) -> dict[str, Any]:
        assert request["arguments"] == {"fdname": "state"}
        with os.fdopen(wire.passed.pop(), "rb") as file:
            read.append(file.read())
        return {"return": {}}

    monitor, _ = room.open(take)
    (tmp_path / "state").write_bytes(b"the state")
    with (tmp_path / "state").open("rb") as file:
        monitor.send_fd("state", file.fileno())
        assert file.read() == b""  # the two ends share a position
    assert read == [b"the state"]


def test_a_file_for_a_qemu_that_is_gone(room: Room) -> None:
    monitor, end = room.open()
    end.close()
    for _ in range(3):
        with pytest.raises(MonitorLost), Path("/dev/null").open("rb") as file:
            monitor.send_fd("state", file.fileno())


# -- events ------------------------------------------------------------------------------------------------------------


def test_events_are_kept_in_their_order(room: Room) -> None:
    monitor, end = room.open()
    end.event("STOP")
    end.event("MIGRATION", status="active")
    end.event("MIGRATION", status="completed")
    assert monitor.wait_event("MIGRATION", soon(), lambda event: event["data"]["status"] == "completed") is not None
    assert [event["data"]["status"] for event in monitor.events("MIGRATION")] == ["active", "completed"]
    assert len(monitor.events("STOP")) == 1
    assert monitor.events("RESUME") == []


def test_an_event_is_waited_for(room: Room) -> None:
    monitor, end = room.open()

    def later() -> None:
        time.sleep(0.1)
        end.event("BALLOON_CHANGE", actual=1)
        end.event("BALLOON_CHANGE", actual=2)

    thread = Thread(target=later)
    thread.start()
    found = monitor.wait_event("BALLOON_CHANGE", soon(), lambda event: event["data"]["actual"] == 2)
    thread.join()
    assert found is not None
    assert found["data"] == {"actual": 2}


def test_an_event_that_does_not_come(room: Room) -> None:
    monitor, end = room.open()
    end.event("STOP")
    assert monitor.wait_event("RESUME", soon(0.1)) is None
    assert monitor.wait_event("STOP", soon(), lambda _: True) is not None
    assert monitor.wait_event("STOP", soon(-1), lambda _: False) is None


def test_a_flood_of_events_is_bounded(room: Room) -> None:
    monitor, end = room.open()
    for number in range(3000):
        end.event("BALLOON_CHANGE", actual=number)
    assert monitor.wait_event("BALLOON_CHANGE", soon(), lambda event: event["data"]["actual"] == 2999) is not None
    assert len(monitor.events("BALLOON_CHANGE")) == 1000


# -- the transcript ----------------------------------------------------------------------------------------------------


def test_the_transcript_tells_all_of_it(room: Room) -> None:
    def refuse_cont(_: Wire, request: Request) -> dict[str, Any]:
        if request["execute"] == "cont":
            return {"error": {"class": "GenericError", "desc": "no"}}
        return {"return": {"é": 1}}

    monitor, end = room.open(refuse_cont)
    monitor.execute("stop", {"x": [1, None]})
    with pytest.raises(MonitorRefused):
        monitor.execute("cont")
    end.event("STOP", reason="x")
    monitor.wait_event("STOP", soon())
    entries = room.told()
    assert all(isinstance(entry.pop("at"), float) for entry in entries)
    assert [entry for entry in entries if "event" not in entry] == [
        {"execute": "stop", "arguments": {"x": [1, None]}},
        {"return": {"é": 1}},
        {"execute": "cont", "arguments": {}},
        {"error": "no"},
    ]
    (event,) = (entry["event"] for entry in entries if "event" in entry)
    assert (event["event"], event["data"]) == ("STOP", {"reason": "x"})


def test_the_transcript_of_a_second_qemu_is_appended(room: Room) -> None:
    for _ in range(2):
        monitor, end = room.open()
        monitor.execute("query-status")
        end.close()
    assert [entry["execute"] for entry in room.told() if "execute" in entry] == ["query-status"] * 2


# -- ends --------------------------------------------------------------------------------------------------------------


def test_qemu_goes_in_the_middle_of_a_command(room: Room) -> None:
    monitor, _ = room.open(lambda wire, request: None)
    with pytest.raises(MonitorLost, match="closed during system_reset") as caught:
        monitor.execute("system_reset")
    assert caught.value.layer == "qemu"
    for _ in range(2):
        with pytest.raises(MonitorLost, match="query-status"):
            monitor.execute("query-status")
    monitor.close()


def test_qemu_says_something_that_is_no_qmp(room: Room) -> None:
    def garbage(wire: Wire, request: Request) -> dict[str, Any]:
        wire.send_garbage()
        return {}

    monitor, _ = room.open(garbage)
    with pytest.raises(MonitorLost):
        monitor.execute("query-status")


def test_an_answer_that_comes_too_late_is_dropped(room: Room) -> None:
    def slow(_: Wire, request: Request) -> dict[str, Any]:
        time.sleep(request["arguments"]["seconds"])
        return {"return": request["arguments"]["seconds"]}

    monitor, _ = room.open(slow)
    with pytest.raises(MonitorLost, match=r"did not answer in time \(QMP x\)"):
        monitor.execute("x", {"seconds": 0.3}, timeout_s=0.05)
    assert monitor.execute("x", {"seconds": 0}) == 0


def test_closing_twice_and_using_what_is_closed(room: Room) -> None:
    monitor, end = room.open()
    monitor.close()
    monitor.close()
    with pytest.raises(MonitorLost):
        monitor.execute("query-status")
    end.close()
    monitor.close()


def test_closing_when_qemu_is_gone(room: Room) -> None:
    monitor, end = room.open()
    end.close()
    monitor.close()


def test_events_after_the_close_are_nobodys(room: Room) -> None:
    monitor, end = room.open()
    monitor.close()
    with suppress(OSError):
        end.event("STOP")
    assert monitor.events("STOP") == []


# -- beginnings that fail ----------------------------------------------------------------------------------------------


def peer_sees_the_end(end: FakeEnd) -> bool:
    """Whether our side of the connection was closed."""
    end._thread.join(10)
    return not end._thread.is_alive()


def test_qemu_does_not_greet(room: Room) -> None:
    end = room.end(greets=False)
    with pytest.raises(MonitorLost, match=r"did not answer in time \(the greeting\)") as caught:
        room.monitor(end, Deadline.after(0.2, "the greeting"))
    assert caught.value.layer == "qemu"
    assert end.ours.fileno() == -1
    assert peer_sees_the_end(end)


@pytest.mark.parametrize("said", [b"", b"This is not QMP.\r\n", b"{}\r\n", b"[1]\r\n", b'{"QMP"', b"\xff\xfe\n"])
def test_qemu_greets_oddly(room: Room, said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(MonitorLost, match="did not open its monitor"):
            Monitor(ours, room.transcript, soon())
    assert ours.fileno() == -1


def test_qemu_goes_as_soon_as_it_has_greeted(room: Room) -> None:
    """The session begins and ends at once: either is right, but not an error that is no :class:`MonitorLost`."""
    for _ in range(30):
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(json.dumps(GREETING).encode() + b'\r\n{"return": {}}\r\n')
            theirs.shutdown(socket.SHUT_WR)
            try:
                monitor = Monitor(ours, room.transcript, soon())
            except MonitorLost:
                pass
            else:
                with pytest.raises(MonitorLost):
                    monitor.execute("query-status")
                monitor.close()
        assert ours.fileno() == -1


def test_a_transcript_that_cannot_be_written(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="nowhere"):
        Monitor(ours, tmp_path / "nowhere" / "qmp.jsonl", soon())


def run_python(program: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A Python of its own, warnings being errors."""
    argv = [sys.executable, "-X", "dev", "-W", "error", "-c", program, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)


def test_a_program_that_ends_with_its_monitors_says_nothing(tmp_path: Path) -> None:
    """Neither when QEMU did not open one, nor when one is still open: no tracebacks of asyncio's, no warnings."""
    program = (
        "import json, socket, sys\n"
        "from pathlib import Path\n"
        "from harness.deadline import Deadline\n"
        "from harness.machine.qmp import Monitor, MonitorLost\n"
        "ours, theirs = socket.socketpair()\n"
        "theirs.close()\n"
        "try:\n"
        "    Monitor(ours, Path(sys.argv[1]), Deadline.after(5, 'it'))\n"
        "except MonitorLost:\n"
        "    print('lost')\n"
        "ours, theirs = socket.socketpair()\n"
        "theirs.sendall(sys.argv[2].encode() + b'\\r\\n{\"return\": {}}\\r\\n')\n"
        "monitor = Monitor(ours, Path(sys.argv[1]), Deadline.after(5, 'it'))\n"
        "theirs.close()\n"
        "try:\n"
        "    monitor.execute('stop')\n"
        "except MonitorLost:\n"
        "    print('lost')\n"
        "monitor.close()\n"
    )
    done = run_python(program, [str(tmp_path / "qmp.jsonl"), json.dumps(GREETING)])
    assert (done.stdout, done.stderr) == ("lost\nlost\n", "")
