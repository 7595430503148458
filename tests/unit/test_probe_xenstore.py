"""The xenstore client against a small xenstored."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.probes import xenstore
from harness.probes.xenstore import Xenstore
from tests.unit.fake_xenstore import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server()
    server.listen(tmp_path / "socket")
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
    server.connections[0].hang_up()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        store.read("/a")
