"""Trace events: switched on for a step, read back from QEMU's log, and nobody else's taken for them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HostError
from harness.machine.qmp import Monitor, MonitorLost, MonitorRefused
from harness.machine.trace import LIMIT_BYTES, Recording, TraceEvent, Tracer

KNOWN = ("balloon_to_target", "balloon_get_config", "vtd_iotlb_page_hit")


class FakeMonitor:
    """A QEMU's monitor, as far as traces go (QEMU's ``trace/qmp.c``): a pattern that matches nothing is no error."""

    def __init__(self, log: Path) -> None:
        self.on: set[str] = set()
        self.asked: list[str] = []
        self.gone = False
        self._log = log

    def execute(self, command: str, arguments: Mapping[str, Any]) -> Any:
        if self.gone:
            raise MonitorLost("it is gone")
        name = arguments["name"]
        self.asked.append(f"{command} {name}")
        matching = [known for known in KNOWN if fnmatchcase(known, name)]
        if not matching and "*" not in name:
            raise MonitorRefused(f'unknown event "{name}"', "GenericError")
        if command == "trace-event-get-state":
            return [{"name": known, "state": "enabled"} for known in matching]
        change = self.on.update if arguments["enable"] else self.on.difference_update
        change(matching)
        return {}

    def happen(self, name: str, text: str = "x 1") -> None:
        """An event in QEMU, which logs it if it is switched on."""
        if name in self.on:
            with self._log.open("a") as file:
                file.write(f"{name} {text}\n")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """QEMU's log."""
    return tmp_path / "trace.log"


@pytest.fixture
def qemu(log: Path) -> FakeMonitor:
    """A QEMU."""
    return FakeMonitor(log)


@pytest.fixture
def tracer(qemu: FakeMonitor, log: Path) -> Tracer:
    """A tracer of it."""
    return Tracer(cast("Monitor", qemu), log)


# -- numbers -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    number=st.integers(-(2**63), 2**64 - 1),
    separator=st.sampled_from([": ", "=", " ", ":", "= "]),
    hexadecimal=st.booleans(),
    before=st.sampled_from(["", "other 5 ", "gpaddr: 7, ", "addr_space 3 ", "x=1 "]),
    after=st.sampled_from(["", " size 9", ", addr2: 4", " (none)"]),
)
def test_a_number_behind_its_name(number: int, separator: str, hexadecimal: bool, before: str, after: str) -> None:
    value = hex(number) if hexadecimal and number >= 0 else str(number)
    assert TraceEvent("event", f"{before}addr{separator}{value}{after}").number("addr") == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing of the kind",
        "address 5",
        "an addr none",
        "addr: -",
        "addr 1f",  # hexadecimal without a prefix: 1 would be wrong
        "addr: 0x",
        "addr: 12ab",
        "addr: 0xzz",
    ],
)
def test_a_number_that_cannot_be_read_is_no_number(text: str) -> None:
    with pytest.raises(HostError, match="event has no field addr"):
        TraceEvent("event", text).number("addr")


def test_a_real_line() -> None:
    """QEMU 7.2, ``hw/virtio/trace-events``."""
    event = TraceEvent("virtio_balloon_handle_output", "section name: pc.ram gpa: 0x3fc5f000")
    assert event.number("gpa") == 0x3FC5F000


# -- recordings --------------------------------------------------------------------------------------------------------


def test_events_of_the_named_kind_in_their_order(log: Path) -> None:
    log.write_text("a_b before 1\n")
    recording = Recording(log, ["a_b", "c_*"])
    with log.open("a") as file:
        file.write("a_b first 1\nx_y other 2\nc_d second 3\nqemu-system-x86_64: warning: a_b is not it\n")
        file.write("a_bc longer 4\na_b\na_b \n a_b indented\nc_ third 5\n")
    assert recording.take() == [
        TraceEvent("a_b", "first 1"),
        TraceEvent("c_d", "second 3"),
        TraceEvent("a_b", ""),
        TraceEvent("c_", "third 5"),
    ]
    assert recording.take() == []


def test_one_field_of_each_event(log: Path) -> None:
    recording = Recording(log, ["a_b", "c_*"])
    log.write_text("a_b name x gpa: 0x1f000\nx_y gpa: 0x2\nc_d gpa=7 size 3 gpa: 8\na_b gpa: 0x1f000\na_b gpa: 0x")
    assert recording.take_field("gpa") == ["0x1f000", "7", "0x1f000"]
    assert recording.take_field("gpa") == []
    with log.open("a") as file:
        file.write("3\na_b name x\n")
    with pytest.raises(HostError, match="no field gpa"):
        recording.take_field("gpa")


def test_a_line_that_is_being_written_is_left_for_later(log: Path) -> None:
    recording = Recording(log, ["a_b"])
    assert recording.take() == []
    log.write_text("a_b first 1\na_b seco")
    assert recording.take() == [TraceEvent("a_b", "first 1")]
    with log.open("a") as file:
        file.write("nd 2\n")
    assert recording.take() == [TraceEvent("a_b", "second 2")]


def test_what_comes_after_the_end_does_not_belong(log: Path) -> None:
    recording = Recording(log, ["a_b"])
    log.write_text("a_b first 1\n")
    recording.close()
    with log.open("a") as file:
        file.write("a_b second 2\n")
    assert recording.take() == [TraceEvent("a_b", "first 1")]
    assert recording.take() == []


def test_a_name_is_no_regular_expression(log: Path) -> None:
    recording = Recording(log, ["a.b", "c*d"])
    log.write_text("axb no 1\na.b yes 2\nc_e_d yes 3\nc d no 4\n")
    assert [event.name for event in recording.take()] == ["a.b", "c_e_d"]


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r", "\0", "\x1b[2J"])
def test_only_a_newline_ends_an_event(log: Path, odd: str) -> None:
    """A guest's own words are in some events: the names of its files, say."""
    recording = Recording(log, ["a_b"])
    log.write_bytes(f"a_b name x{odd}a_b y size 5\n".encode())
    (event,) = recording.take()
    assert event.number("size") == 5


def test_bytes_that_are_no_text(log: Path) -> None:
    recording = Recording(log, ["a_b"])
    log.write_bytes(b"a_b name \xff\xfe size 5\n")
    assert [event.number("size") for event in recording.take()] == [5]


def test_a_trace_that_does_not_fit_in_memory(log: Path) -> None:
    recording = Recording(log, ["a_b"])
    with log.open("wb") as file:
        file.truncate(LIMIT_BYTES + 1)
    with pytest.raises(HostError, match="256 MiB is too large") as caught:
        recording.take()
    assert caught.value.log == log
    assert caught.value.hint is not None


# -- switches ----------------------------------------------------------------------------------------------------------


def test_events_are_on_for_the_block_only(tracer: Tracer, qemu: FakeMonitor) -> None:
    qemu.happen("balloon_to_target", "x 1")
    with tracer.record("balloon_to_target") as recording:
        qemu.happen("balloon_to_target", "x 2")
        qemu.happen("balloon_get_config", "x 3")
    qemu.happen("balloon_to_target", "x 4")
    assert [event.number("x") for event in recording.take()] == [2]
    assert not qemu.on


def test_events_are_off_after_a_failure(tracer: Tracer, qemu: FakeMonitor) -> None:
    with pytest.raises(ValueError, match="x"), tracer.record(*KNOWN):
        assert qemu.on == set(KNOWN)
        raise ValueError("x")
    assert not qemu.on


def test_blocks_nest(tracer: Tracer, qemu: FakeMonitor) -> None:
    with tracer.record("balloon_to_target") as outer:
        qemu.happen("balloon_to_target", "x 1")
        with tracer.record("balloon_to_target") as inner:
            qemu.happen("balloon_to_target", "x 2")
        qemu.happen("balloon_to_target", "x 3")
    assert [event.number("x") for event in outer.take()] == [1, 2, 3]
    assert [event.number("x") for event in inner.take()] == [2]
    assert not qemu.on


@pytest.mark.parametrize(("first", "second"), [("balloon_*", "balloon_to_target"), ("balloon_to_target", "balloon_*")])
@pytest.mark.parametrize("crossed", [False, True])
def test_blocks_nest_whatever_their_patterns_have_in_common(
    tracer: Tracer, qemu: FakeMonitor, first: str, second: str, crossed: bool
) -> None:
    """One that ends must not switch off what the other still counts."""
    one, other = tracer.record(first), tracer.record(second)
    first_recording, second_recording = one.__enter__(), other.__enter__()
    ends, stays = (one, other) if crossed else (other, one)
    kept = second_recording if crossed else first_recording
    ends.__exit__(None, None, None)
    qemu.happen("balloon_to_target", "x 1")
    stays.__exit__(None, None, None)
    assert [event.number("x") for event in kept.take()] == [1]
    assert not qemu.on


def test_a_pattern_switches_all_that_match(tracer: Tracer, qemu: FakeMonitor) -> None:
    with tracer.record("balloon_*") as recording:
        for name in KNOWN:
            qemu.happen(name)
    assert [event.name for event in recording.take()] == ["balloon_to_target", "balloon_get_config"]


@pytest.mark.parametrize("name", ["nosuch_event", "nosuch_*"])
def test_an_event_that_this_qemu_does_not_have(tracer: Tracer, qemu: FakeMonitor, name: str) -> None:
    """No events of a kind that cannot come would be no evidence."""
    with pytest.raises(HostError, match="no trace event") as caught, tracer.record("balloon_to_target", name):
        pass
    assert caught.value.layer == "qemu"
    assert caught.value.hint is not None
    assert not qemu.on
    with tracer.record("balloon_to_target"):
        assert qemu.on == {"balloon_to_target"}


def test_qemu_may_be_gone_at_the_end_but_not_at_the_beginning(tracer: Tracer, qemu: FakeMonitor) -> None:
    with tracer.record("balloon_to_target") as recording:
        qemu.happen("balloon_to_target")
        qemu.gone = True
    assert len(recording.take()) == 1
    with pytest.raises(MonitorLost), tracer.record("balloon_to_target"):
        pass
