"""A client of xenstore: over xenstored's socket in dom0, over /dev/xen/xenbus in any domain.

Messages: xen/include/public/io/xs_wire.h; what they mean: docs/misc/xenstore.txt; both in Xen's source.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import time
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

SOCKET = "/run/xenstored/socket"
DEVICE = "/dev/xen/xenbus"

DIRECTORY, READ, GET_PERMS, WATCH, UNWATCH, TRANSACTION_START, TRANSACTION_END = 1, 2, 3, 4, 5, 6, 7
WRITE, MKDIR, RM, SET_PERMS, WATCH_EVENT, ERROR = 11, 12, 13, 14, 15, 16

_HEADER = struct.Struct("<IIII")  # type, request id, transaction id, length of what follows
#: XENSTORE_PAYLOAD_MAX: a longer message ends the connection.
PAYLOAD_BYTES = 4096
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


class Xenstore:
    """One connection. Not for use by several threads.

    :param path: a socket or a device; by default xenstored's socket where there is one, else the device.
    """

    def __init__(self, path: str | None = None) -> None:
        path = path or (SOCKET if os.path.exists(SOCKET) else DEVICE)
        self._fd = _connect(path)
        self._transaction = 0
        self._serial = 0
        self._events: list[tuple[str, str]] = []

    def close(self) -> None:
        """Close the connection; its watches go with it."""
        os.close(self._fd)

    def read(self, path: str) -> str | None:
        """A node's value; None when there is no such node.

        :raises OSError: EACCES, for one.
        """
        try:
            return self._request(READ, path.encode()).decode()
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise

    def ls(self, path: str) -> list[str]:
        """The names below a node; none when there is no such node."""
        try:
            answer = self._request(DIRECTORY, _text(path))
        except OSError as error:
            if error.errno in _ABSENT:
                return []
            raise
        return [name.decode() for name in answer.split(b"\0") if name]

    def write(self, path: str, value: str) -> None:
        """Set a node's value; it and those above it are made if need be."""
        self._request(WRITE, _text(path) + value.encode())

    def mkdir(self, path: str) -> None:
        """Make an empty node, unless it is there."""
        self._request(MKDIR, _text(path))

    def rm(self, path: str) -> None:
        """Remove a node and all below it, if it is there."""
        try:
            self._request(RM, _text(path))
        except OSError as error:
            if error.errno not in _ABSENT:
                raise

    def perms(self, path: str) -> list[str]:
        """A node's permissions, as :meth:`set_perms` takes them."""
        return [entry.decode() for entry in self._request(GET_PERMS, _text(path)).split(b"\0") if entry]

    def set_perms(self, path: str, entries: list[str]) -> None:
        """Set a node's permissions: its owner and what all others may do first (``n0``), then others (``r3``)."""
        self._request(SET_PERMS, _text(path) + b"".join(_text(entry) for entry in entries))

    @contextmanager
    def transaction(self) -> Iterator[Xenstore]:
        """What is done on this connection in the block takes effect at once at its end, or not at all.

        :raises OSError: EAGAIN at the end of the block, when somebody else came in between; see :meth:`transact`.
        """
        self._transaction = int(self._request(TRANSACTION_START, _text("")).rstrip(b"\0"))
        try:
            yield self
        except BaseException:
            self._end(b"F")
            raise
        self._end(b"T")

    def transact(self, work: Callable[[Xenstore], T]) -> T:
        """Do all of ``work`` in one transaction, again and again until nobody else came in between."""
        while True:
            try:
                with self.transaction():
                    return work(self)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise

    def watch(self, path: str, token: str) -> None:
        """Be told of changes at and below a node. One event comes at once."""
        self._request(WATCH, _text(path) + _text(token))

    def unwatch(self, path: str, token: str) -> None:
        """Be told no more."""
        self._request(UNWATCH, _text(path) + _text(token))

    def next_event(self, timeout_s: float) -> tuple[str, str] | None:
        """The next change: the node's path and the watch's token; None when there is none in time."""
        deadline = time.monotonic() + timeout_s
        while not self._events:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            self._receive()
        return self._events.pop(0)

    def fileno(self) -> int:
        """For ``select``: readable when an event may have come. Those that :attr:`has_events` tells of came before."""
        return self._fd

    @property
    def has_events(self) -> bool:
        """Whether :meth:`next_event` has something without waiting."""
        return bool(self._events)

    def _end(self, verdict: bytes) -> None:
        try:
            self._request(TRANSACTION_END, verdict + b"\0")
        finally:
            self._transaction = 0

    def _request(self, kind: int, payload: bytes) -> bytes:
        if kind == READ:
            payload += b"\0"
        if len(payload) > PAYLOAD_BYTES:
            raise OSError(errno.E2BIG, f"{len(payload)} bytes are too many for one message")
        self._serial += 1
        # Watches belong to no transaction, and the kernel's device refuses those that say so.
        transaction = 0 if kind in (WATCH, UNWATCH) else self._transaction
        message = memoryview(_HEADER.pack(kind, self._serial, transaction, len(payload)) + payload)
        while message:
            message = message[os.write(self._fd, message) :]
        while (answer := self._receive()) is None:
            pass
        said, body = answer
        if said == ERROR:
            name = body.rstrip(b"\0").decode()
            raise OSError(getattr(errno, name, errno.EIO), f"xenstore says {name}", _shown(payload))
        if said != kind:
            raise OSError(errno.EPROTO, f"xenstore answers a message of type {kind} with one of type {said}")
        return body

    def _receive(self) -> tuple[int, bytes] | None:
        """The next message's type and body; None for an event, which is kept."""
        kind, _, _, length = _HEADER.unpack(self._exactly(_HEADER.size))
        body = self._exactly(length)
        if kind != WATCH_EVENT:
            return kind, body
        path, token = body.split(b"\0")[:2]
        self._events.append((path.decode(), token.decode()))
        return None

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = os.read(self._fd, size - len(data))
            if not piece:
                raise ConnectionResetError(errno.ECONNRESET, "xenstore closed the connection")
            data += piece
        return data


def _connect(path: str) -> int:
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        return connection.detach()


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _shown(payload: bytes) -> str:
    return payload.partition(b"\0")[0].decode(errors="replace")
