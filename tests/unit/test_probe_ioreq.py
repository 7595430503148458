"""What a backend does with requests: what is the kernel's is left alone, for a while; the rest is answered."""

from __future__ import annotations

import importlib
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROBES = Path(__file__).parents[2] / "harness" / "probes"
READY, IN_PROCESS, RESPONSE, COPY, INVALIDATE = 1, 2, 3, 1, 8


class Evtchn:
    """Event channels that are told of by the test; remote port N is local port N + 100."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self.notified: list[int] = []
        self.ready: list[int] = []

    def bind_interdomain(self, domain: int, port: int) -> int:
        return port + 100

    def next(self, timeout_s: float) -> int | None:
        return self.pending.pop(0) if self.pending else None

    def notify(self, port: int) -> None:
        self.notified.append(port)

    def eoi(self, port: int) -> None:
        self.ready.append(port)


class Page:
    def __init__(self, buffer: bytearray) -> None:
        self.view = memoryview(buffer)
        self.closed = False


class Privcmd:
    """A domain with two vCPUs."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.page = bytearray(4096)
        for vcpu in range(2):
            struct.pack_into("<I", self.page, 32 * vcpu + 24, vcpu + 1)

    def nr_vcpus(self, domain: int) -> int:
        return 2

    def create_server(self, domain: int) -> int:
        return 5

    def map_ioreq(self, domain: int, server: int, near: int) -> Page:
        return Page(self.page)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.done.append((name, *arguments))


class Bench:
    """A server with what it stands on."""

    def __init__(self, ioreq: ModuleType) -> None:
        self.delivered: dict[int, int] = {}  # address: how often the kernel has completed such a request
        self.handled: list[tuple[int, str]] = []
        windows = [(0x2000000, 0x200)]
        self.server = ioreq.Server(7, windows, lambda request: self.delivered.get(request.address), self.handle)
        self.page: bytearray = self.server.privcmd.page
        self.evtchn: Evtchn = self.server.evtchn

    def handle(self, vcpu: int, request: object) -> int:
        self.handled.append((vcpu, str(request)))
        return 0x1234

    def ask(self, vcpu: int, address: int, data: int = 0, size: int = 4, kind: int = COPY, read: bool = False) -> None:
        """Be the guest: put a request and signal it."""
        self.put(vcpu, address, data, size, kind, read)
        self.event(vcpu)

    def put(self, vcpu: int, address: int, data: int = 0, size: int = 4, kind: int = COPY, read: bool = False) -> None:
        """Put a request of which nobody has been told yet."""
        struct.pack_into("<QQII", self.page, 32 * vcpu, address, data, 1, size)
        self.page[32 * vcpu + 30] = READY | (0x20 if read else 0)
        self.page[32 * vcpu + 31] = kind

    def event(self, vcpu: int) -> None:
        self.evtchn.pending.append(vcpu + 101)
        self.server.on_events()

    def state(self, vcpu: int) -> int:
        return self.page[32 * vcpu + 30] & 0xF


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Iterator[Bench]:
    monkeypatch.syspath_prepend(str(PROBES))
    for name in ("ioreq", "privcmd", "evtchn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("ioreq")
    monkeypatch.setattr(module, "Privcmd", Privcmd)
    monkeypatch.setattr(module, "Evtchn", Evtchn)
    yield Bench(module)
    for name in ("ioreq", "privcmd", "evtchn"):
        sys.modules.pop(name, None)


def test_a_server_serves_its_windows(bench: Bench) -> None:
    done = bench.server.privcmd.done
    assert ("map_range", 7, 5, 0x2000000, 0x20001FF) in done
    assert done[-1] == ("enable", 7, 5, True)
    assert bench.server.ports == [101, 102]


def test_what_is_ours_is_answered(bench: Bench) -> None:
    bench.ask(1, 0x2000054, data=9, size=2)
    bench.ask(0, 0x2000010, read=True)
    bench.ask(0, 0x0, kind=INVALIDATE)
    assert bench.handled == [(1, "write 2 at 0x2000054 0x9"), (0, "read 4 at 0x2000010"), (0, "type 8")]
    assert bench.state(0) == bench.state(1) == RESPONSE
    # what is written keeps its value, what is read gets one
    assert struct.unpack_from("<Q", bench.page, 32 + 8) == (9,)
    assert bench.evtchn.notified == [102, 101, 101]
    assert bench.evtchn.ready == [102, 101, 101]


def test_a_reads_answer(bench: Bench) -> None:
    bench.ask(0, 0x2000010, read=True)
    assert struct.unpack_from("<Q", bench.page, 8) == (0x1234,)
    assert bench.page[30] == 0x20 | RESPONSE


def test_an_event_without_a_request(bench: Bench) -> None:
    bench.event(1)
    assert bench.handled == []
    assert bench.evtchn.notified == []
    assert bench.evtchn.ready == [102]


def test_what_the_kernel_does_in_time_is_left_to_it(bench: Bench, clock: list[float]) -> None:
    bench.delivered[0x2000050] = 0
    for _ in range(5):
        bench.ask(0, 0x2000050)
        assert (bench.state(0), bench.server.pause_s) == (READY, 0.005)
        clock[0] += 0.4
        bench.delivered[0x2000050] += 1  # of another vCPU
        bench.server.look_at_all()
        clock[0] += 0.4
        bench.server.look_at_all()
        bench.page[30] = RESPONSE
        bench.server.look_at_all()
        assert bench.server.pause_s == 0.1
    assert bench.server.missed == [0, 0]
    assert bench.handled == []
    assert bench.evtchn.notified == []


def test_what_the_kernel_does_not_do_is_done_by_force(bench: Bench, clock: list[float]) -> None:
    bench.delivered[0x2000050] = 3
    for count in range(1, 4):
        bench.ask(1, 0x2000050)
        clock[0] += 0.49
        bench.server.look_at_all()
        assert bench.state(1) == READY
        clock[0] += 0.02
        bench.server.look_at_all()
        assert bench.state(1) == RESPONSE
        assert bench.server.missed == [0, count]
    # from then on it is not waited for
    bench.ask(1, 0x2000050)
    clock[0] += 0.01
    bench.server.look_at_all()
    assert bench.server.missed == [0, 4]
    assert bench.evtchn.notified == [102] * 4
    assert bench.handled == []


def test_a_request_that_is_the_kernels_no_more_is_ours(bench: Bench) -> None:
    bench.delivered[0x2000050] = 0
    bench.ask(0, 0x2000050)
    del bench.delivered[0x2000050]  # deassigned
    bench.server.look_at_all()
    assert bench.handled == [(0, "write 4 at 0x2000050 0x0")]
    assert bench.server.missed == [0, 0]


def test_a_request_from_before_an_assignment_is_ours_if_the_kernel_leaves_it(bench: Bench, clock: list[float]) -> None:
    bench.put(0, 0x2000050)
    bench.delivered[0x2000050] = 4
    bench.server.assigned()
    bench.event(0)
    assert bench.handled == []
    clock[0] += 0.51
    bench.server.look_at_all()
    assert bench.state(0) == RESPONSE
    assert bench.handled == [(0, "write 4 at 0x2000050 0x0")]
    assert bench.server.missed == [0, 0]
    # the next one is the kernel's
    bench.ask(0, 0x2000050)
    clock[0] += 0.51
    bench.server.look_at_all()
    assert bench.server.missed == [1, 0]


def test_a_request_after_a_delivery_is_not_from_before_the_assignment(bench: Bench, clock: list[float]) -> None:
    bench.put(0, 0x2000050)
    bench.delivered[0x2000050] = 4
    bench.server.assigned()
    bench.delivered[0x2000050] = 5
    bench.ask(0, 0x2000050)
    clock[0] += 0.51
    bench.server.look_at_all()
    assert bench.server.missed == [1, 0]
    assert bench.handled == []


def test_a_request_whose_event_is_lost(bench: Bench, clock: list[float]) -> None:
    bench.server.look_in_time()
    bench.ask(0, 0x2000054)
    bench.page[30] = READY  # the next one, of which nobody tells
    bench.server.look_in_time()
    assert bench.state(0) == READY
    clock[0] += 0.11
    bench.server.look_in_time()
    assert bench.state(0) == RESPONSE
    assert len(bench.handled) == 2


def test_an_answer_that_nobody_is_told_of(bench: Bench, clock: list[float]) -> None:
    bench.ask(0, 0x2000010, read=True)
    bench.server.look_at_all()
    assert (bench.server.pause_s, bench.evtchn.notified) == (0.1, [101])
    clock[0] += 3.1
    bench.server.look_in_time()
    assert (bench.server.missed, bench.evtchn.notified) == ([1, 0], [101, 101])
    # the answer stays what it was
    assert struct.unpack_from("<Q", bench.page, 8) == (0x1234,)


def test_the_kernels_answers_to_one_request_after_another(bench: Bench, clock: list[float]) -> None:
    for _ in range(9):
        bench.page[30] = RESPONSE
        bench.event(0)
        bench.server.look_at_all()
        clock[0] += 1.1
    assert bench.server.missed == [0, 0]


def test_a_request_that_is_begun_and_no_more(bench: Bench, clock: list[float]) -> None:
    for number in range(1, 5):
        bench.page[30] = IN_PROCESS
        bench.server.look_at_all()
        clock[0] += 3.1 if number < 4 else 0.01
        bench.server.look_at_all()
        assert (bench.state(0), bench.server.missed[0]) == (RESPONSE, number)
        bench.page[30] = 0
        bench.server.look_at_all()
