"""Event channels of this domain, through /dev/xen/evtchn.

Numbers and structures: include/uapi/xen/evtchn.h.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct

DEVICE = "/dev/xen/evtchn"
BIND_INTERDOMAIN, BIND_UNBOUND_PORT, UNBIND, NOTIFY = 0x00084501, 0x00044502, 0x00044503, 0x00044504


class Evtchn:
    """One open file, with the ports that were bound through it. Closing it unbinds them."""

    def __init__(self) -> None:
        self._fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        """Unbind all."""
        os.close(self._fd)

    def bind_interdomain(self, domain: int, port: int) -> int:
        """Connect to a port that another domain holds out, and give the local port."""
        return self._call(BIND_INTERDOMAIN, struct.pack("=II", domain, port))

    def bind_unbound(self, domain: int) -> int:
        """A new local port, for that domain to connect to."""
        return self._call(BIND_UNBOUND_PORT, struct.pack("=I", domain))

    def unbind(self, port: int) -> None:
        """Give a local port up."""
        self._call(UNBIND, struct.pack("=I", port))

    def notify(self, port: int) -> None:
        """Signal the other end of a local port."""
        self._call(NOTIFY, struct.pack("=I", port))

    def next(self, timeout_s: float) -> int | None:
        """A local port that was signalled, None when none is in time. It is quiet until :meth:`eoi`."""
        if timeout_s > 0:
            select.select([self._fd], [], [], timeout_s)
        try:
            return int.from_bytes(os.read(self._fd, 4), "little")
        except BlockingIOError:
            return None

    def eoi(self, port: int) -> None:
        """Let a port that :meth:`next` gave be signalled again."""
        os.write(self._fd, struct.pack("=I", port))

    def fileno(self) -> int:
        """For ``select``: readable when :meth:`next` has a port."""
        return self._fd

    def _call(self, number: int, argument: bytes) -> int:
        # A mutable argument, because with any other Python gives that back and not the result.
        result: int = fcntl.ioctl(self._fd, number, bytearray(argument))
        return result
