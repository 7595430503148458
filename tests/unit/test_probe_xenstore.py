"""The xenstore client against a small xenstored of its own that speaks the wire format and no more."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.probes import xenstore
from harness.probes.xenstore import Xenstore

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
    """One connection's xenstored: a flat dictionary, transactions that copy it, watches that fire on the exact path."""

    def __init__(self, path: Path) -> None:
        self.nodes: dict[str, bytes] = {"/tool": b""}
        self.perms: dict[str, list[bytes]] = {}
        self.watches: dict[bytes, bytes] = {}
        self.conflicts = 0
        self.requests: list[tuple[str, int, bytes]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._transactions: dict[int, dict[str, bytes]] = {}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        try:
            self._connection, _ = self._listener.accept()
        except OSError:
            return
        with self._connection as connection, connection.makefile("rb") as stream:
            while header := stream.read(16):
                kind, request, transaction, length = struct.unpack("<IIII", header)
                body = stream.read(length)
                self.requests.append((NAMES[kind], transaction, body))
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
            self._connection.sendall(message[start : start + 7])

    def _store(self, transaction: int) -> dict[str, bytes]:
        return self._transactions[transaction] if transaction else self.nodes

    def read(self, transaction: int, body: bytes) -> bytes:
        assert body.endswith(b"\0")
        return self._store(transaction)[body[:-1].decode()]

    def write(self, transaction: int, body: bytes) -> bytes:
        path, _, value = body.partition(b"\0")
        self._store(transaction)[path.decode()] = value
        if path in self.watches:
            self._send(WATCH_EVENT, 0, 0, path + b"\0" + self.watches[path] + b"\0")
        return b"OK\0"

    def mkdir(self, transaction: int, body: bytes) -> bytes:
        self._store(transaction).setdefault(body[:-1].decode(), b"")
        return b"OK\0"

    def rm(self, transaction: int, body: bytes) -> bytes:
        del self._store(transaction)[body[:-1].decode()]
        return b"OK\0"

    def directory(self, transaction: int, body: bytes) -> bytes:
        prefix = body[:-1].decode()
        if prefix not in self.nodes:
            raise KeyError(prefix)
        below = [path[len(prefix) + 1 :] for path in self._store(transaction) if path.startswith(f"{prefix}/")]
        return b"".join(name.encode() + b"\0" for name in below)

    def set_perms(self, _: int, body: bytes) -> bytes:
        path, *entries = body.split(b"\0")[:-1]
        self.perms[path.decode()] = entries
        return b"OK\0"

    def get_perms(self, _: int, body: bytes) -> bytes:
        return b"".join(entry + b"\0" for entry in self.perms[body[:-1].decode()])

    def watch(self, transaction: int, body: bytes) -> bytes:
        assert transaction == 0
        path, token, rest = body.split(b"\0")
        assert rest == b""
        self.watches[path] = token
        self._send(WATCH_EVENT, 0, 0, body)
        return b"OK\0"

    def unwatch(self, _: int, body: bytes) -> bytes:
        del self.watches[body.split(b"\0")[0]]
        return b"OK\0"

    def start(self, _: int, body: bytes) -> bytes:
        assert body == b"\0"
        number = 40 + len(self._transactions)
        self._transactions[number] = dict(self.nodes)
        return f"{number}".encode() + b"\0"

    def end(self, transaction: int, body: bytes) -> bytes:
        copy = self._transactions.pop(transaction)
        if body == b"F\0":
            return b"OK\0"
        if self.conflicts:
            self.conflicts -= 1
            raise InterruptedError
        self.nodes = copy
        return b"OK\0"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "socket")
    yield server
    server.close()


@pytest.fixture
def store(server: Server, tmp_path: Path) -> Iterator[Xenstore]:
    store = Xenstore(str(tmp_path / "socket"))
    yield store
    store.close()


def test_what_is_written_can_be_read(server: Server, store: Xenstore) -> None:
    store.write("/local/domain/3/data/x", "ä value")
    assert server.nodes["/local/domain/3/data/x"] == "ä value".encode()
    assert store.read("/local/domain/3/data/x") == "ä value"
    assert store.read("/tool") == ""


def test_a_node_that_is_not_there(store: Xenstore) -> None:
    assert store.read("/nowhere") is None
    assert store.ls("/nowhere") == []
    store.rm("/nowhere")
    with pytest.raises(OSError) as caught:
        store.perms("/nowhere")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "/nowhere"


def test_directories(server: Server, store: Xenstore) -> None:
    store.mkdir("/d")
    assert server.nodes["/d"] == b""
    assert store.ls("/d") == []
    store.write("/d/a", "1")
    store.write("/d/b", "2")
    assert store.ls("/d") == ["a", "b"]
    store.rm("/d/a")
    assert store.ls("/d") == ["b"]


def test_permissions(server: Server, store: Xenstore) -> None:
    store.set_perms("/tool", ["n3", "r0"])
    assert server.perms["/tool"] == [b"n3", b"r0"]
    assert store.perms("/tool") == ["n3", "r0"]


def test_a_transaction_is_seen_whole_or_not_at_all(server: Server, store: Xenstore) -> None:
    with store.transaction() as inside:
        inside.write("/a", "1")
        assert "/a" not in server.nodes
        inside.write("/b", "2")
    assert server.nodes["/a"] == b"1"
    assert server.nodes["/b"] == b"2"
    store.write("/c", "3")
    assert server.requests[-1][1] == 0
    with pytest.raises(ValueError, match="on the way"), store.transaction():
        store.write("/d", "4")
        raise ValueError("on the way")
    assert "/d" not in server.nodes
    assert server.requests[-1][2] == b"F\0"


def test_a_transaction_is_done_again_when_somebody_came_in_between(server: Server, store: Xenstore) -> None:
    server.conflicts = 2
    with pytest.raises(BlockingIOError), store.transaction():
        store.write("/a", "1")
    tries = []

    def work(inside: Xenstore) -> str:
        tries.append(inside.read("/a"))
        inside.write("/a", "2")
        return "done"

    assert store.transact(work) == "done"
    assert tries == [None, None]
    assert server.nodes["/a"] == b"2"


def test_watches(server: Server, store: Xenstore) -> None:
    assert store.next_event(0.0) is None
    store.watch("/w", "a token")
    assert store.next_event(5) == ("/w", "a token")
    # what comes before an answer is kept
    store.write("/w", "1")
    store.write("/w", "2")
    assert store.has_events
    assert [store.next_event(5), store.next_event(5), store.next_event(0.01)] == [("/w", "a token")] * 2 + [None]
    with store.transaction():
        store.watch("/x", "inside")
    assert store.next_event(5) == ("/x", "inside")
    store.unwatch("/w", "a token")
    store.write("/w", "3")
    assert store.next_event(0.05) is None


def test_an_oversized_message_is_not_sent(server: Server, store: Xenstore) -> None:
    with pytest.raises(OSError) as caught:
        store.write("/big", "x" * xenstore.PAYLOAD_BYTES)
    assert caught.value.errno == errno.E2BIG
    store.write("/big", "x" * (xenstore.PAYLOAD_BYTES - 5))
    assert [name for name, _, _ in server.requests] == ["write"]


def test_a_store_that_goes_away(server: Server, store: Xenstore) -> None:
    store.write("/a", "1")
    server._connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        store.read("/a")
