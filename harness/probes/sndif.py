"""The sound protocol of Xen, from the backend's side (include/xen/interface/io/sndif.h)."""

from __future__ import annotations

import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.probes import pgdir
    from harness.probes.shbuf import Buffers
else:  # beside this file, in the guest
    import pgdir

OPEN, CLOSE, READ, WRITE = range(4)
TRIGGER, QUERY = 8, 9
POSITION = 0
TRIGGERS = ("start", "pause", "stop", "resume")


class Sound:
    """A card with one device: stream 0 plays, stream 1 captures. Each stream has one buffer while it is open."""

    kind = "vsnd"
    operations = {
        OPEN: "open",
        CLOSE: "close",
        READ: "read",
        WRITE: "write",
        TRIGGER: "trigger",
        QUERY: "hw_param_query",
    }
    channels = ("0/0", "0/1")
    names = ("ring-ref", "event-channel", "evt-ring-ref", "evt-event-channel")

    def __init__(self, buffers: Buffers, *, buffer_size: int) -> None:
        self._buffers = buffers
        self._buffer_size = buffer_size
        self.seed = 0
        """The pattern that captured bytes are made of."""

    def nodes(self) -> dict[str, str]:
        """What the frontend finds in xenstore."""
        return {
            "short-name": "harness",
            "long-name": "harness sound card",
            "sample-rates": "48000",
            "sample-formats": "s16_le",
            "buffer-size": str(self._buffer_size),
            "channels-min": "2",
            "channels-max": "2",
            "0/name": "harness",
            "0/0/type": "p",
            "0/0/unique-id": "harness-playback",
            "0/1/type": "c",
            "0/1/unique-id": "harness-capture",
        }

    def handle(self, channel: int, operation: int, body: bytes) -> tuple[dict[str, Any], bytes, list[bytes]]:
        """Serve one request: what it said, the body of the response, events to send.

        :raises OSError: whose errno is the response's status.
        """
        if operation == OPEN:
            rate, sample, channels, size, first, period = struct.unpack_from("<IBBxxIII", body)
            self._buffers.open(channel, first, size, be_alloc=False)
            return {"rate": rate, "format": sample, "channels": channels, "size": size, "period": period}, b"", []
        if operation == CLOSE:
            self._buffers.close(channel)
            return {}, b"", []
        if operation == TRIGGER:
            return {"type": TRIGGERS[body[0]]}, b"", []
        if operation == QUERY:
            return {}, body[:40], []
        offset, length = struct.unpack_from("<II", body)
        self._transfer(channel, operation, offset, length)
        return {"offset": offset, "length": length}, b"", []

    def _transfer(self, channel: int, operation: int, offset: int, length: int) -> None:
        buffer = self._buffers.alive.get(channel)
        if buffer is None or buffer.pages is None or offset + length > buffer.size:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if operation == READ:
            pgdir.fill(buffer.pages.memory, length, self.seed, offset)

    def clear(self) -> None:
        """Nothing is kept beside the buffers."""


def position(octets: int) -> bytes:
    """The event that says how far a stream has come since it was opened, but for its number."""
    return struct.pack("<B5xQ", POSITION, octets)
