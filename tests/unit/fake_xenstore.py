"""A small xenstored: it speaks the wire format, and knows transactions, watches and relative paths."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

# xen/include/public/io/xs_wire.h, written down a second time: a typing error must not cancel itself out.
NAMES = {
    1: "directory",
    2: "read",
    3: "get_perms",
    4: "watch",
    5: "unwatch",
    6: "start",
    7: "end",
    11: "write",
    12: "mkdir",
    13: "rm",
    14: "set_perms",
}
WATCH_EVENT, ERROR = 15, 16


class Server:
    """One store. Each path that it listens on is a way in: dom0's, or a domain's, whose relative paths are its own.

    ``conflicts`` is how many of the next transactions fail, ``requests`` are (name, transaction, body) of all.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, bytes] = {"/tool": b""}
        self.perms: dict[str, list[bytes]] = {}
        self.conflicts = 0
        self.requests: list[tuple[str, int, bytes]] = []
        self.connections: list[_Connection] = []
        self.lock = threading.Lock()
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def listen(self, path: Path, home: str = "") -> str:
        """Let clients connect; relative paths of theirs are below ``home``."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        self._listeners.append(listener)
        self._run(self._accept, listener, home)
        return str(path)

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
        for connection in self.connections:
            connection.hang_up()
        for thread in self._threads:
            thread.join(10)
        for listener in self._listeners:
            listener.close()

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, home: str) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            connection = _Connection(self, peer, home)
            self.connections.append(connection)
            self._run(connection.serve)


class _Connection:
    def __init__(self, server: Server, peer: socket.socket, home: str) -> None:
        self.server = server
        self.watches: dict[str, tuple[bytes, bytes]] = {}  # whole path: as it was asked for, and its token
        self._peer = peer
        self._home = home
        self._transactions: dict[int, dict[str, bytes]] = {}
        self._begun: dict[int, dict[str, bytes]] = {}  # the store as each transaction found it

    def hang_up(self) -> None:
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        with self._peer, self._peer.makefile("rb") as stream, suppress(OSError):
            while header := stream.read(16):
                kind, request, transaction, length = struct.unpack("<IIII", header)
                self._answer(kind, request, transaction, stream.read(length))
        with self.server.lock:
            self.watches.clear()

    def _answer(self, kind: int, request: int, transaction: int, body: bytes) -> None:
        with self.server.lock:
            self.server.requests.append((NAMES[kind], transaction, body))
            try:
                answer = getattr(self, NAMES[kind])(transaction, body)
                self._send(kind, request, transaction, answer)
            except KeyError:
                self._send(ERROR, request, transaction, b"ENOENT\0")
            except InterruptedError:
                self._send(ERROR, request, transaction, b"EAGAIN\0")

    def _send(self, kind: int, request: int, transaction: int, body: bytes) -> None:
        message = struct.pack("<IIII", kind, request, transaction, len(body)) + body
        for start in range(0, len(message), 7):  # a stream has no message boundaries
            self._peer.sendall(message[start : start + 7])

    def _whole(self, path: bytes) -> str:
        text = path.rstrip(b"\0").decode()
        return text if text.startswith("/") else f"{self._home}/{text}"

    def _store(self, transaction: int) -> dict[str, bytes]:
        return self._transactions[transaction] if transaction else self.server.nodes

    def _fire(self, paths: set[str]) -> None:
        """Tell every watch at or above a path that changed."""
        for connection in self.server.connections:
            for watched, (asked, token) in connection.watches.items():
                for path in paths:
                    if path == watched or path.startswith(f"{watched}/"):
                        shown = asked + path[len(watched) :].encode()
                        with suppress(OSError):  # somebody who goes at this moment
                            connection._send(WATCH_EVENT, 0, 0, shown + b"\0" + token + b"\0")

    def read(self, transaction: int, body: bytes) -> bytes:
        assert body.endswith(b"\0")
        return self._store(transaction)[self._whole(body)]

    def write(self, transaction: int, body: bytes) -> bytes:
        path, _, value = body.partition(b"\0")
        self._store(transaction)[self._whole(path)] = value
        if not transaction:
            self._fire({self._whole(path)})
        return b"OK\0"

    def mkdir(self, transaction: int, body: bytes) -> bytes:
        self._store(transaction).setdefault(self._whole(body), b"")
        return b"OK\0"

    def rm(self, transaction: int, body: bytes) -> bytes:
        store, path = self._store(transaction), self._whole(body)
        gone = [node for node in store if node == path or node.startswith(f"{path}/")]
        for node in gone:
            del store[node]
        if not gone:
            raise KeyError(path)
        return b"OK\0"

    def directory(self, transaction: int, body: bytes) -> bytes:
        store, path = self._store(transaction), self._whole(body)
        below = {node[len(path) + 1 :].split("/")[0] for node in store if node.startswith(f"{path}/")}
        if path not in store and not below:
            raise KeyError(path)
        return b"".join(name.encode() + b"\0" for name in sorted(below))

    def set_perms(self, _: int, body: bytes) -> bytes:
        path, *entries = body.split(b"\0")[:-1]
        self.server.perms[self._whole(path)] = entries
        return b"OK\0"

    def get_perms(self, _: int, body: bytes) -> bytes:
        return b"".join(entry + b"\0" for entry in self.server.perms[self._whole(body)])

    def watch(self, transaction: int, body: bytes) -> bytes:
        assert transaction == 0
        path, token, rest = body.split(b"\0")
        assert rest == b""
        self.watches[self._whole(path)] = (path, token)
        self._send(WATCH_EVENT, 0, 0, body)
        return b"OK\0"

    def unwatch(self, _: int, body: bytes) -> bytes:
        del self.watches[self._whole(body.split(b"\0")[0])]
        return b"OK\0"

    def start(self, _: int, body: bytes) -> bytes:
        assert body == b"\0"
        number = 40 + len(self._transactions)
        self._transactions[number], self._begun[number] = dict(self.server.nodes), dict(self.server.nodes)
        return f"{number}".encode() + b"\0"

    def end(self, transaction: int, body: bytes) -> bytes:
        copy, found = self._transactions.pop(transaction), self._begun.pop(transaction)
        if body == b"F\0":
            return b"OK\0"
        if self.server.conflicts:
            self.server.conflicts -= 1
            raise InterruptedError
        before = self.server.nodes
        if before != found:  # somebody else came in between, whose changes the copy does not have
            raise InterruptedError
        self.server.nodes = copy
        self._fire({path for path in {*before, *copy} if before.get(path) != copy.get(path)})
        return b"OK\0"
