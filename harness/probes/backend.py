"""A virtio-mmio backend in dom0: an ioreq server, ioeventfds for notifications, irqfds for interrupts.

Each backend is a process of its own, so that the agent never waits for a guest. It completes whatever the kernel gives
back, and by force what the kernel does not complete in time: a broken kernel hangs no guest, it is counted.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
from collections import Counter

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from harness.probes import domain as domains
    from harness.probes import holders, ioreq, privcmd, virtio_device
    from harness.probes.holders import Answer
else:  # beside this file, in the guest
    import domain as domains
    import holders
    import ioreq
    import privcmd
    import virtio_device

#: The first window and interrupt that Xen gives a domain (GUEST_VIRTIO_MMIO_BASE, xen/include/public/arch-arm.h).
WINDOWS, WINDOW_BYTES, FIRST_IRQ = 0x02000000, 0x200, 33
NOTIFY = virtio_device.R_NOTIFY
_DEASSIGN = 1
#: Where a backend maps its requests: by its pid, or at one place for all. Linux 6.12 keeps ioeventfds in one list by
#: that address alone, whichever process it is of.
_PAGES, _PAGES_APART = 0x7000_0000_0000, 1 << 20
#: Kinds of requests that are told apart, of those that came back.
_KINDS = 64


def start(backend: str, domain: str, devices: list[str], page: str = "own") -> Answer:
    """Start a backend for a domain.

    :param page: whether the address of its page with requests is its ``own``, or ``shared`` with other backends.
    :param devices: for each of the domain's windows, in order, a name of ``virtio_device.DEVICES`` or ``none``.
    :raises OSError: ENOSYS or EOPNOTSUPP, where Xen has no ioreq servers.
    """
    number = domains.identify(domain)
    pid = holders.start(backend, lambda connection: _serve(connection, number, devices, page))
    try:
        return {**holders.call(backend, "facts"), "pid": pid}
    except (OSError, RuntimeError):
        holders.end(backend)
        raise


def call(backend: str, operation: str, **arguments: object) -> Answer:
    """Let a backend do something: a method of :class:`Backend`."""
    return holders.call(backend, operation, **arguments)


def end(backend: str, kill: bool = False) -> Answer:
    """End a backend: undo all that it has done, or die with it."""
    if not kill:
        holders.call(backend, "undo")
    holders.end(backend, kill)
    return {"interrupts": len(interrupt_lines())}


def interrupt_lines() -> list[str]:
    """dom0's lines of /proc/interrupts for ioeventfds: one for each port that the kernel has bound."""
    with open("/proc/interrupts") as file:
        return [line.strip() for line in file if "ioeventfd" in line]


def _held_by(fd: int) -> int:
    """What an eventfd holds, without reading it (Documentation/filesystems/proc.rst)."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("eventfd-count"))


def _serve(connection: socket.socket, domain: int, devices: list[str], page: str) -> None:
    lines = connection.makefile("rw")
    try:
        backend = Backend(domain, devices, _PAGES + (os.getpid() * _PAGES_APART if page == "own" else 0))
    except OSError as error:
        # The first call is answered with what went wrong.
        lines.readline()
        lines.write(holders.answer_one(_Failed(error), '["facts", {}]'))
        lines.flush()
        return
    backend.run(connection)


class _Failed:
    def __init__(self, error: OSError) -> None:
        self._error = error

    def facts(self) -> Answer:
        raise self._error


class Assignment:
    """An ioeventfd as the kernel was told of it."""

    def __init__(self, fd: int, address: int, size: int, queue: int) -> None:
        self.fd, self.address, self.size, self.queue = fd, address, size, queue

    def matches(self, request: ioreq.Request) -> bool:
        """Whether the kernel must complete a request: what privcmd's interface promises, written down once more."""
        return (
            request.kind == ioreq.COPY
            and request.write
            and request.address == self.address + NOTIFY
            and request.size == self.size
            and request.data & 0xFFFF == self.queue
        )


class Backend:
    """The backend itself, in its process. Its public methods are what :func:`call` can ask for."""

    def __init__(self, domain: int, devices: list[str], page_near: int) -> None:
        self._domain = domain
        windows = [(WINDOWS + WINDOW_BYTES * number, WINDOW_BYTES) for number in range(len(devices))]
        self._server = ioreq.Server(domain, windows, self._expects, self._handle, page_near)
        self._memory = virtio_device.GuestMemory(self._server.privcmd, domain)
        self._devices: dict[int, virtio_device.Device] = {}
        for number, name in enumerate(devices):
            if name != "none":
                self._devices[number] = self._make_device(number, name)
        self._eventfds: dict[str, int] = {}
        self._delivered: Counter[str] = Counter()
        self._assigned: dict[str, Assignment] = {}
        self._irqfds: dict[int, str] = {}  # window: eventfd
        self._files = {"main": self._server.privcmd}
        self._returned = [0] * self._server.vcpus
        self._notifications = 0
        self._kinds: Counter[str] = Counter()
        self._read_data = 0

    def run(self, connection: socket.socket) -> None:
        """Serve the guest and the agent until the agent ends it."""
        evtchn, buffer = self._server.evtchn, b""
        while True:
            served = [fd for name, fd in self._eventfds.items() if self._device_of(name) is not None]
            listened: list[int] = [evtchn.fileno(), connection.fileno(), *served]
            ready, _, _ = select.select(listened, [], [], self._server.pause_s)
            if evtchn.fileno() in ready:
                self._server.on_events()
            self._server.look_in_time()
            for name, fd in list(self._eventfds.items()):
                if fd in ready:
                    self._serve_queue(name)
            if connection.fileno() in ready:
                data = connection.recv(65536)
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    connection.sendall(holders.answer_one(self, line.decode()).encode())
                self._server.look_at_all()
                if not data:
                    return

    # -- what can be asked for

    def facts(self) -> Answer:
        return {"server": self._server.number, "vcpus": self._server.vcpus, "ports": self._server.ports}

    def open_restricted(self, file: str, domain: str) -> Answer:
        """Another file of privcmd, which may be used for one domain only."""
        self._files[file] = privcmd.Privcmd()
        return {"error": privcmd.name_of(self._files[file].restrict(domains.identify(domain)))}

    def eventfd(self, eventfd: str) -> Answer:
        """Make an eventfd, unless it is there."""
        if eventfd not in self._eventfds:
            self._eventfds[eventfd] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return {"fd": self._eventfds[eventfd]}

    def ioeventfd(
        self,
        eventfd: str | int,
        queue: int,
        window: int = 0,
        offset: int = 0,
        address: int | None = None,
        addr_len: int = 4,
        vcpus: int | None = None,
        flags: int = 0,
        domain: str | None = None,
        ports: str = "bound",
        ioreq_page: str = "mapped",
        structure: str = "good",
        file: str = "main",
        like_read: bool = False,
    ) -> Answer:
        """IOCTL_PRIVCMD_IOEVENTFD; see steps/ioeventfd.py for what can be wrong on purpose."""
        fd = self._fd(eventfd)
        queue = self._read_data if like_read else queue
        base = WINDOWS + WINDOW_BYTES * window + offset if address is None else address
        numbers = bytearray(struct.pack(f"={self._server.vcpus}I", *self._server.ports))
        request = struct.pack(
            "=QQQIIIIIHxx",
            self._page_address(ioreq_page),
            0 if ports == "null" else privcmd.address_of(numbers),
            base,
            addr_len,
            fd & 0xFFFFFFFF,
            self._server.vcpus if vcpus is None else vcpus,
            queue,
            flags,
            self._domain if domain is None else domains.identify(domain),
        )
        code = self._files[file].call(privcmd.IOEVENTFD, 8 if structure == "bad" else bytearray(request))
        if code == 0 and isinstance(eventfd, str):
            if flags & _DEASSIGN:
                self._assigned.pop(eventfd, None)
            else:
                self._assigned[eventfd] = Assignment(fd, base, addr_len, queue)
                self._server.assigned()
        return {"error": privcmd.name_of(code), "interrupts": len(interrupt_lines())}

    def irqfd(
        self,
        eventfd: str | int,
        window: int = 0,
        flags: int = 0,
        domain: str | None = None,
        irq: int | None = None,
        size: int | None = None,
        structure: str = "good",
        dm_op: str = "good",
        file: str = "main",
    ) -> Answer:
        """IOCTL_PRIVCMD_IRQFD."""
        fd = self._fd(eventfd)
        number = FIRST_IRQ + window if irq is None else irq
        operation = bytearray(privcmd.dm_op_of(privcmd.SET_IRQ_LEVEL, privcmd.irq_arguments(number)))
        request = struct.pack(
            "=QIIIHxx",
            8 if dm_op == "bad" else privcmd.address_of(operation),
            len(operation) if size is None else size,
            fd & 0xFFFFFFFF,
            flags,
            self._domain if domain is None else domains.identify(domain),
        )
        code = self._files[file].call(privcmd.IRQFD, 8 if structure == "bad" else bytearray(request))
        if code == 0 and isinstance(eventfd, str):
            if flags & _DEASSIGN:
                self._irqfds = {key: name for key, name in self._irqfds.items() if name != eventfd}
            else:
                self._irqfds[window] = eventfd
        return {"error": privcmd.name_of(code)}

    def signal(self, eventfd: str, count: int = 1) -> Answer:
        """Write to an eventfd, as often as asked for, and give what it holds afterwards."""
        self.eventfd(eventfd)
        for _ in range(count):
            os.eventfd_write(self._eventfds[eventfd], 1)
        return {"value": _held_by(self._eventfds[eventfd])}

    def close_eventfd(self, eventfd: str) -> Answer:
        """Close an eventfd. An irqfd goes with it, an ioeventfd does not."""
        os.close(self._eventfds.pop(eventfd))
        self._irqfds = {key: name for key, name in self._irqfds.items() if name != eventfd}
        return {}

    def raise_irq(self, window: int = 0, count: int = 1) -> Answer:
        """Raise the interrupt of a window by DM_OP."""
        for _ in range(count):
            self._server.privcmd.set_irq_level(self._domain, FIRST_IRQ + window)
        return {}

    def counts(self) -> Answer:
        """All that has been seen."""
        for name in self._eventfds:
            if self._device_of(name) is None:
                self._drain(name)
        return {
            "eventfds": dict(self._delivered),
            "missed": sum(self._server.missed),
            "missed_by_vcpu": self._server.missed,
            "events": self._server.events,
            "returned": sum(self._returned),
            "returned_by_vcpu": self._returned,
            "notifications": self._notifications,
            "kinds": dict(self._kinds.most_common(_KINDS)),
            "served": sum(device.served for device in self._devices.values()),
            "interrupts": sum(device.interrupts for device in self._devices.values()),
        }

    def served_rng(self, window: int, size: int) -> Answer:
        """What the entropy source has given, at most ``size`` bytes of each request, in hexadecimal."""
        count = self._devices[window].served
        return {"requests": [virtio_device.rng_bytes(number, size).hex() for number in range(count)]}

    def disk(self, window: int, sector: int, count: int) -> Answer:
        """The SHA-256 of sectors of a disk."""
        import hashlib

        device = self._devices[window]
        assert isinstance(device, virtio_device.Block)
        return {"sha256": hashlib.sha256(device.disk[512 * sector : 512 * (sector + count)]).hexdigest()}

    def undo(self) -> Answer:
        """Deassign all and destroy the server."""
        for name in list(self._irqfds.values()):
            self.irqfd(name, flags=_DEASSIGN)
        for name in list(self._assigned):
            self.ioeventfd(name, self._assigned[name].queue, flags=_DEASSIGN)
        self._memory.close()
        self._server.destroy()
        return {}

    # -- inside

    def _expects(self, request: ioreq.Request) -> int | None:
        for name, assignment in self._assigned.items():
            if assignment.matches(request):
                self._drain(name)
                return self._delivered[name]
        return None

    def _handle(self, vcpu: int, request: ioreq.Request) -> int:
        if request.kind != ioreq.COPY:
            return 0
        self._returned[vcpu] += 1
        if not request.write:
            self._read_data = request.data & 0xFFFF
        if len(self._kinds) < _KINDS or str(request) in self._kinds:
            self._kinds[str(request)] += 1
        number, offset = divmod(request.address - WINDOWS, WINDOW_BYTES)
        device = self._devices.get(number)
        if request.write and offset == NOTIFY:
            self._notifications += 1
            if device is not None:
                device.notified(request.data & 0xFFFF)
        elif device is not None and request.write:
            device.write(offset, request.data & 0xFFFFFFFF)
        elif device is not None:
            return device.read(offset, request.size)
        return 0xFFFFFFFFFFFFFFFF >> (64 - 8 * request.size)

    def _make_device(self, number: int, name: str) -> virtio_device.Device:
        return virtio_device.DEVICES[name](self._memory, lambda: self._interrupt(number))

    def _interrupt(self, window: int) -> None:
        if window in self._irqfds:
            os.eventfd_write(self._eventfds[self._irqfds[window]], 1)
        else:
            self._server.privcmd.set_irq_level(self._domain, FIRST_IRQ + window)

    def _device_of(self, eventfd: str) -> virtio_device.Device | None:
        """The device whose queue an eventfd notifies."""
        assignment = self._assigned.get(eventfd)
        if assignment is None:
            return None
        return self._devices.get((assignment.address - WINDOWS) // WINDOW_BYTES)

    def _serve_queue(self, eventfd: str) -> None:
        device = self._device_of(eventfd)
        before = self._delivered[eventfd]
        self._drain(eventfd)
        if device is not None and self._delivered[eventfd] > before:
            device.notified(self._assigned[eventfd].queue)

    def _drain(self, eventfd: str) -> None:
        self._delivered[eventfd] += self._read_eventfd(eventfd)

    def _read_eventfd(self, eventfd: str) -> int:
        with contextlib.suppress(BlockingIOError):
            value: int = os.eventfd_read(self._eventfds[eventfd])
            return value
        return 0

    def _fd(self, eventfd: str | int) -> int:
        """The number of an eventfd, made at first use, or of what is none."""
        if isinstance(eventfd, int):
            return eventfd
        if eventfd == "file":
            return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.eventfd(eventfd)
        return self._eventfds[eventfd]

    def _page_address(self, kind: str) -> int:
        if kind == "above":
            return 0xFFFFFFFFFFFFF000
        if kind == "elsewhere":
            self._elsewhere = mmap.mmap(-1, privcmd.PAGE)
            return privcmd.address_of(self._elsewhere)
        return self._server.page.address
