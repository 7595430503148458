"""An ioreq server for one domain: requests as they come, told apart into what the kernel must do and what we do.

Layout of a request: struct ioreq, xen/include/public/hvm/ioreq.h.

The kernel completes what an assigned ioeventfd matches, but it never tells Xen that it is ready for the next event
(its handler is bound with late EOI): that is done here, for every event. While an event is masked the guest may post
the next request, so a request that the kernel will complete can be seen here, and must be left alone.
"""

from __future__ import annotations

import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.probes.evtchn import Evtchn
    from harness.probes.privcmd import Privcmd
else:  # beside this file, in the guest
    from evtchn import Evtchn
    from privcmd import Privcmd

NONE, READY, IN_PROCESS, RESPONSE = 0, 1, 2, 3
COPY, INVALIDATE = 1, 8  # IOREQ_TYPE_
WRITE, READ = 0, 1
_SLOT = struct.Struct("<QQIIIHBB")  # addr, data, count, size, vp_eport, pad, state and flags, type

#: How long a request that the kernel must complete may lie there, while nothing of its kind is delivered.
PATIENCE_S = 0.5
#: How long a request may lie there that is begun or answered: until Xen looks, the vCPU must have its turn.
_TAKEN_S = 3.0
#: A kernel that has missed so many is given no more time, or a burst would take minutes.
_TRUSTED_MISSES = 3
_IMPATIENCE_S = 0.005
#: How many events may come before somebody else has a turn.
_AT_ONCE = 32
#: How often requests are looked at without an event: one may be lost.
_PAUSE_S = 0.1


class Request:
    """One request, as the guest made it."""

    __slots__ = ("address", "count", "data", "kind", "port", "size", "state", "write")

    def __init__(self, page: memoryview, vcpu: int) -> None:
        slot: tuple[int, ...] = _SLOT.unpack_from(page, vcpu * _SLOT.size)
        self.address, self.data, self.count, self.size, self.port, _, flags, self.kind = slot
        self.state, self.write = flags & 0xF, not flags & 0x20

    def __str__(self) -> str:
        if self.kind != COPY:
            return f"type {self.kind}"
        value = f" {self.data:#x}" if self.write else ""
        return f"{'write' if self.write else 'read'} {self.size} at {self.address:#x}{value}"


class Server:
    """The server.

    :param domain: the domain's number.
    :param windows: (first address, size) of each range that is served.
    :param expects: gives how often the kernel has completed requests of this kind; None when it is not the kernel's.
    :param handle: answers a request that is ours: what a read gives. Called for each vCPU and request.
    :param page_near: the address that the page with the requests is to have.
    """

    def __init__(
        self,
        domain: int,
        windows: list[tuple[int, int]],
        expects: Callable[[Request], int | None],
        handle: Callable[[int, Request], int],
        page_near: int = 0,
    ) -> None:
        self.domain = domain
        self.privcmd = Privcmd()
        self.evtchn = Evtchn()
        self.vcpus = self.privcmd.nr_vcpus(domain)
        self.number = self.privcmd.create_server(domain)
        self.page = self.privcmd.map_ioreq(domain, self.number, page_near)
        for start, size in windows:
            self.privcmd.map_range(domain, self.number, start, start + size - 1)
        self.privcmd.enable(domain, self.number, True)
        requests = [Request(self.page.view, vcpu) for vcpu in range(self.vcpus)]
        self.ports = [self.evtchn.bind_interdomain(domain, request.port) for request in requests]
        self.missed = [0] * self.vcpus
        self.events = [0] * self.vcpus
        self._looked = 0.0
        self._expects = expects
        self._handle = handle
        # vCPU: (state, how often its kind had been delivered), and when that was seen
        self._waiting: dict[int, tuple[tuple[int, int | None], float]] = {}
        # vCPU: how often its request's kind had been delivered when the kernel was told of that kind
        self._early: dict[int, int] = {}

    def destroy(self) -> None:
        """Destroy the server, and let its page and its ports go."""
        self.privcmd.enable(self.domain, self.number, False)
        self.privcmd.destroy_server(self.domain, self.number)
        self.page.close()
        self.evtchn.close()

    def on_events(self) -> None:
        """Read the events that there are, but not without end; do what is ours, and be ready for the next of each."""
        for _ in range(_AT_ONCE):
            port = self.evtchn.next(0)
            if port is None:
                return
            vcpu = self.ports.index(port)
            self.events[vcpu] += 1
            if vcpu in self._waiting and self._waiting[vcpu][0][0] != READY:
                del self._waiting[vcpu]  # who asks again has had the answer to what it asked before
            self.look(vcpu)
            self.evtchn.eoi(port)

    def look(self, vcpu: int) -> None:
        """See to a vCPU's request, if there is one."""
        request = Request(self.page.view, vcpu)
        delivered = None
        if request.state == READY:
            delivered = self._expects(request)
            if delivered is None:
                self._waiting.pop(vcpu, None)
                self.complete(vcpu, self._handle(vcpu, request))
                return
        if request.state == NONE:
            self._waiting.pop(vcpu, None)
        else:
            self._wait(vcpu, request.state, delivered)

    def _wait(self, vcpu: int, state: int, delivered: int | None) -> None:
        """Leave a request to the kernel or to Xen, for a time: a broken kernel may not complete it, or not tell."""
        now = time.monotonic()
        seen = (state, delivered)
        before, since = self._waiting.get(vcpu, (None, now))
        patience_s = PATIENCE_S if state == READY else _TAKEN_S
        if seen != before:
            self._waiting[vcpu] = (seen, now)
        elif now - since > (patience_s if self.missed[vcpu] < _TRUSTED_MISSES else _IMPATIENCE_S):
            self._waiting.pop(vcpu)
            if state == READY and self._early.pop(vcpu, None) == delivered:
                self.complete(vcpu, self._handle(vcpu, Request(self.page.view, vcpu)))
                return
            self.missed[vcpu] += 1
            if state == RESPONSE:
                self.evtchn.notify(self.ports[vcpu])
            else:
                self.complete(vcpu, 0)

    def assigned(self) -> None:
        """The kernel has been told of more that it must complete.

        What lies there at that moment may be from before: then the kernel leaves it, and it is ours. Whether it is
        shows only when the kernel has had its time.
        """
        for vcpu in range(self.vcpus):
            request = Request(self.page.view, vcpu)
            if request.state == READY and (delivered := self._expects(request)) is not None:
                self._early[vcpu] = delivered

    def look_at_all(self) -> None:
        """See to all requests, also those whose event was lost."""
        self._looked = time.monotonic()
        for vcpu in range(self.vcpus):
            self.look(vcpu)

    def look_in_time(self) -> None:
        """The same, when it is time."""
        if time.monotonic() - self._looked >= self.pause_s:
            self.look_at_all()

    @property
    def pause_s(self) -> float:
        """After how long somebody must look again, event or not."""
        urgent = any(state == READY for (state, _), _ in self._waiting.values())
        broken = bool(self._waiting) and max(self.missed) >= _TRUSTED_MISSES
        return _IMPATIENCE_S if urgent or broken else _PAUSE_S

    def complete(self, vcpu: int, data: int) -> None:
        """Answer a request, and let the vCPU go on."""
        start = vcpu * _SLOT.size
        view = self.page.view
        if view[start + 30] & 0x20:
            struct.pack_into("<Q", view, start + 8, data)
        view[start + 30] = view[start + 30] & 0xF0 | RESPONSE
        self.evtchn.notify(self.ports[vcpu])
