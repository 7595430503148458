"""Backends of paravirtual displays and sound cards, each in a process of its own in dom0.

A backend publishes its device in xenstore, follows its frontend's state, answers requests, and walks the page directory
of each shared buffer that it is told of. Between calls it goes on by itself, so that a client in the domU is served
while the agent waits for that client. What it does wrong, it does because it was told to (:meth:`Backend.behave`).

States: include/xen/interface/io/xenbus.h. Requests, responses and events are 64 bytes; a request is an id (16 bits), an
operation (8 bits), padding to 8 bytes and a body; a response has the status (32 bits) from byte 4.
"""

from __future__ import annotations

import os
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.probes import displif, holders, pgdir, shbuf, sndif, worker
    from harness.probes.domain import identify
    from harness.probes.evtchn import Evtchn
    from harness.probes.gnttab import Gntdev, set_limit
    from harness.probes.xenring import BackRing, EventPage
    from harness.probes.xenstore import Xenstore

    Answer = dict[str, Any]
    Device = displif.Display | sndif.Sound
else:  # beside this file, in the guest
    import displif
    import holders
    import pgdir
    import shbuf
    import sndif
    import worker
    from domain import identify
    from evtchn import Evtchn
    from gnttab import Gntdev, set_limit
    from xenring import BackRing, EventPage
    from xenstore import Xenstore

INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED, RECONFIGURING = 1, 2, 3, 4, 5, 6, 7
_POLL_S = 0.02
_LOOK_S = 1.0  # rings are looked at now and then, even if an event was lost
_LOGGED = 200


class _Channel:
    """One channel of a connected frontend: a ring, an event page, and a port for each."""

    def __init__(self, gntdev: Gntdev, evtchn: Evtchn, domain: int, numbers: tuple[int, int, int, int]) -> None:
        ring_ref, ring_port, event_ref, event_port = numbers
        self._evtchn = evtchn
        self._pages = [gntdev.map(domain, [ring_ref]), gntdev.map(domain, [event_ref])]
        self.ring = BackRing(self._pages[0].memory)
        self.events = EventPage(self._pages[1].memory)
        self.ring_port = evtchn.bind_interdomain(domain, ring_port)
        self.event_port = evtchn.bind_interdomain(domain, event_port)
        self.sent = 0

    def send(self, event: bytes) -> None:
        """Send an event; the frontend wants them numbered from 0."""
        self.events.put(struct.pack("<H", self.sent) + event)
        self.sent = (self.sent + 1) & 0xFFFF
        self._evtchn.notify(self.event_port)

    def close(self) -> None:
        for port in (self.ring_port, self.event_port):
            self._evtchn.unbind(port)
        self.ring.close()
        self.events.close()
        for page in self._pages:
            page.close()


class Backend:
    """One device of one frontend.

    :param device: what speaks its protocol.
    """

    def __init__(self, device: Device, buffers: shbuf.Buffers, domain: int) -> None:
        self._device = device
        self._buffers = buffers
        self._domain = domain
        self._store = Xenstore()
        self._evtchn = Evtchn()
        self._gntdev = Gntdev()
        self._front = f"/local/domain/{domain}/device/{device.kind}/0"
        self._back = f"/local/domain/0/backend/{device.kind}/{domain}/0"
        self._channels: list[_Channel] = []
        self._names: dict[str, shbuf.Buffer] = {}
        self._refuse: dict[str, int] = {}
        self._silent: set[str] = set()
        self._requests: dict[str, int] = {}
        self._log: list[Answer] = []
        self._events = 0
        self._connections = 0
        self._seen = 0
        self._state = INITIALISING
        self._publish()
        self._enter(INIT_WAIT)
        self._store.watch(f"{self._front}/state", "frontend")

    # -- xenstore

    def _publish(self) -> None:
        """Make the device's nodes; where a dead backend left them, take its place."""

        def work(store: Xenstore) -> None:
            if store.read(f"{self._front}/state") is not None:
                store.write(f"{self._back}/state", str(INITIALISING))
                return
            # What is made below a node inherits its permissions: they come first.
            pair = ((self._front, [f"n{self._domain}", "r0"]), (self._back, ["n0", f"r{self._domain}"]))
            for path, perms in pair:
                store.mkdir(path)
                store.set_perms(path, perms)
            front = {"backend": self._back, "backend-id": "0", "state": str(INITIALISING), **self._device.nodes()}
            back = {"frontend": self._front, "frontend-id": str(self._domain), "online": "1", "versions": "1,2"}
            back["state"] = str(INITIALISING)
            for name, value in front.items():
                store.write(f"{self._front}/{name}", value)
            for name, value in back.items():
                store.write(f"{self._back}/{name}", value)

        self._store.transact(work)

    def _enter(self, state: int) -> None:
        self._state = state
        self._store.write(f"{self._back}/state", str(state))

    def _frontend(self) -> int:
        return int(self._store.read(f"{self._front}/state") or 0)

    # -- between calls

    def waits(self) -> tuple[list[int], float | None]:
        """See :class:`worker.Session`."""
        # An event may have come while something else was asked of xenstore.
        return [self._evtchn.fileno(), self._store.fileno()], 0 if self._store.has_events else _LOOK_S

    def turn(self) -> None:
        """Serve what has come, and follow the frontend."""
        while (port := self._evtchn.next(0)) is not None:
            self._evtchn.eoi(port)
        for number, channel in enumerate(self._channels):
            for request in channel.ring.requests():
                self._serve(number, channel, request)
        told = False
        while self._store.next_event(0) is not None:
            told = True
        if told:
            self._follow(self._frontend())

    def _follow(self, front: int) -> None:
        """Go where the frontend's new state leads."""
        if self._state == CONNECTED and front in (INITIALISING, CLOSING, CLOSED, RECONFIGURING):
            self._disconnect()
        elif self._state == INIT_WAIT and front == INITIALISED:
            self._connect()
        elif self._state == INIT_WAIT and front == INITIALISING and self._seen == RECONFIGURING:
            # It did not look while it was busy with itself. One that is bound anew does, and a sound card that is told
            # twice starts over, with other ports than those that it has just published.
            self._enter(INIT_WAIT)
        self._seen = front

    def _connect(self) -> None:
        for channel in self._device.channels:
            paths = [f"{self._front}/{channel}/{name}" for name in self._device.names]
            ring, port, events, event_port = (int(self._store.read(path) or 0) for path in paths)
            numbers = (ring, port, events, event_port)
            self._channels.append(_Channel(self._gntdev, self._evtchn, self._domain, numbers))
        self._connections += 1
        self._enter(CONNECTED)

    def _disconnect(self) -> None:
        """Let go of all that the frontend shares: it takes it back whether we do or not."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self._device.clear()
        self._buffers.clear()
        self._names.clear()
        self._enter(INIT_WAIT)

    def _serve(self, number: int, channel: _Channel, request: bytes) -> None:
        identity, operation = struct.unpack_from("<HB", request)
        name = self._device.operations.get(operation, f"operation {operation}")
        self._requests[name] = self._requests.get(name, 0) + 1
        status, body = 0, b""
        said: Answer = {}
        events: list[bytes] = []
        if name in self._refuse:
            status = self._refuse[name]
        else:
            try:
                said, body, events = self._device.handle(number, operation, request[8:])
            except OSError as error:
                status, said = -(error.errno or 1), {"error": str(error)}
        answered = name not in self._silent
        self._log.append({"operation": name, "channel": number, "status": status, "answered": answered, **said})
        del self._log[:-_LOGGED]
        if not answered:
            return
        if channel.ring.respond(struct.pack("<HBxi", identity, operation, status) + body):
            self._evtchn.notify(channel.ring_port)
        for event in events:
            self._send(channel, event)

    def _send(self, channel: _Channel, event: bytes) -> None:
        channel.send(event)
        self._events += 1

    # -- calls

    def status(self) -> Answer:
        """Where both ends are, what was asked so far, and what is held."""
        return {
            "backend_state": self._state,
            "frontend_state": self._frontend(),
            "connected": self._state == CONNECTED and self._frontend() == CONNECTED,
            "connections": self._connections,
            "requests": dict(self._requests),
            "events_sent": self._events,
            "events_pending": sum(channel.events.pending for channel in self._channels),
            "buffers": len(self._buffers.alive),
            "pages_mapped": self._buffers.mapped,
        }

    def behave(
        self,
        refuse: dict[str, int],
        silent: list[str],
        keep: bool,
        bogus_from: int | None,
        events: bool,
    ) -> Answer:
        """From now on: refuse operations with a status, let them go unanswered, keep pages, give bogus references."""
        self._refuse, self._silent = refuse, set(silent)
        self._buffers.keep, self._buffers.bogus_from = keep, bogus_from
        if isinstance(self._device, displif.Display):
            self._device.sends_events = events
        return {}

    def take_log(self) -> Answer:
        """What was asked since the last call, newest last."""
        log, self._log = self._log, []
        return {"log": log}

    def adopt(self, buffer: str) -> Answer:
        """Give the buffer that came since the last call a name, and say what its directory looks like (if one came)."""
        last, self._buffers.last = self._buffers.last, None
        if last is None:
            return {"directory": None}
        self._names[buffer] = last
        return {"directory": last.describe()}

    def fill(self, buffer: str, seed: int) -> Answer:
        """Write a pattern into a buffer."""
        memory, size = self._memory(buffer)
        pgdir.fill(memory, size, seed)
        return {}

    def compare(self, buffer: str, seed: int) -> Answer:
        """Compare every byte of a buffer with a pattern."""
        memory, size = self._memory(buffer)
        return {**pgdir.compare(memory, size, seed)}

    def _memory(self, buffer: str) -> tuple[Any, int]:
        found = self._names[buffer]
        if found.pages is None:
            raise ValueError(f"the pages of {buffer} are not mapped")
        return found.pages.memory, found.size

    def drop_kept(self) -> Answer:
        """Unmap the pages that stayed mapped on purpose."""
        return {"pages": self._buffers.drop_kept()}

    def capture(self, seed: int) -> Answer:
        """Which pattern captured sound is made of."""
        self._sound().seed = seed
        return {}

    def advance(self, channel: int, octets: int) -> Answer:
        """Tell the frontend how far a stream has come."""
        self._sound()
        self._send(self._channels[channel], sndif.position(octets))
        return {}

    def _sound(self) -> sndif.Sound:
        if not isinstance(self._device, sndif.Sound):
            raise TypeError("this backend is no sound card")
        return self._device

    def close(self, patience_s: float) -> Answer:
        """Close the device and wait until the frontend has let go of it."""
        self._enter(CLOSED)
        gone = self._wait(patience_s, lambda: self._frontend() in (INITIALISING, CLOSED))
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self._device.clear()
        self._buffers.clear()
        return {"gone": gone, "frontend_state": self._frontend()}

    def _wait(self, patience_s: float, done: Any) -> bool:
        deadline = time.monotonic() + patience_s
        while not (finished := bool(done())) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return finished


# -- seen from the agent ----------------------------------------------------------------------------------------


def start(kind: str, domain: str, patience_s: float, gntalloc_limit: int | None = None, **options: Any) -> Answer:
    """Start a backend and wait until its frontend is connected, or ``patience_s`` has passed.

    :param kind: ``vdispl`` or ``vsnd``.
    :param domain: the frontend's, by its name.
    :param gntalloc_limit: how many pages gntalloc may hand out in all.
    :param options: what the device takes.
    """
    if gntalloc_limit is not None:
        set_limit(gntalloc_limit)
    number = identify(domain)

    def make() -> Backend:
        os.nice(-5)  # the client's patience is the frontend's 3 s
        buffers = shbuf.Buffers(number)
        device = displif.Display if kind == "vdispl" else sndif.Sound
        return Backend(device(buffers, **options), buffers, number)

    worker.start(kind, make)
    return wait_status(kind, "connected", True, patience_s)


def call(kind: str, operation: str, arguments: Answer) -> Answer:
    """Let a backend do something; see :class:`Backend`."""
    return holders.call(kind, operation, **arguments)


def wait_status(kind: str, field: str, value: Any, patience_s: float) -> Answer:
    """A backend's status, when a field of it has a value or ``patience_s`` has passed."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = call(kind, "status", {})
        if answer[field] == value or time.monotonic() > deadline:
            return answer
        time.sleep(_POLL_S)


def stop(kind: str, kill: bool) -> Answer:
    """End a backend's process; its frontend is not told. The kernel takes back what it held."""
    return {"signal": holders.end(kind, kill)}
