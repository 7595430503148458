"""Calls to a domain's agent by way of xenstore: both ends of it, and a small xenstored between them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness.probes import postbox
from harness.probes.xenstore import Xenstore
from tests.unit.fake_xenstore import Server

PROBES = Path(__file__).parents[2] / "harness" / "probes"
HOME = "/local/domain/7"
# The agent as it runs in a domain, but for where it finds xenstore; it has one probe more.
AGENT = """
import sys, types
sys.path.insert(0, sys.argv[1])
import agent, xenstore
xenstore.SOCKET = sys.argv[2]
sys.modules["tried"] = types.SimpleNamespace(echo=lambda text: text, twice=lambda n: "x" * n, fail=lambda: 1 / 0)
agent.serve_domain()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server()
    server.listen(tmp_path / "dom0")
    server.listen(tmp_path / "domain", HOME)
    server.nodes |= {f"{HOME}/name": b"guest", "/local/domain/0/name": b"Domain-0"}
    yield server
    server.close()


@pytest.fixture
def domain(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dom0's end. In a guest probes lie side by side, and so import one another."""
    monkeypatch.syspath_prepend(str(PROBES))
    for name in ("domain", "once", "postbox", "xenstore"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("domain")
    monkeypatch.setattr(sys.modules["xenstore"], "SOCKET", str(tmp_path / "dom0"))
    return module


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[None]:
    """A domain's agent that serves."""
    process = subprocess.Popen([sys.executable, "-c", AGENT, str(PROBES), str(tmp_path / "domain")])
    yield
    process.kill()
    process.wait()


def test_a_domain_answers(domain: ModuleType, agent: None) -> None:
    assert domain.wait("guest", 20) == {"id": 7}
    for text in ("", "ä\n", "x" * 5000):
        assert domain.call("guest", "tried.echo", {"text": text}, 20)["result"] == text


def test_what_a_probe_raises_is_an_answer(domain: ModuleType, agent: None) -> None:
    domain.wait("guest", 20)
    answer = domain.call("guest", "tried.fail", {}, 20)
    assert (answer["kind"], answer["errno"]) == ("ZeroDivisionError", None)
    # an answer too long to go through xenstore is one as well, and so the next
    answer = domain.call("guest", "tried.twice", {"n": 2 * postbox.MAX_CHUNKS * postbox.CHUNK_CHARS}, 20)
    assert answer["kind"] == "ValueError"
    assert domain.call("guest", "tried.twice", {"n": 3}, 20)["result"] == "xxx"


def test_a_domain_that_does_not_answer(domain: ModuleType, server: Server, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        domain.wait("guest", 0.1)
    with pytest.raises(TimeoutError):
        domain.call("guest", "tried.echo", {"text": "one"}, 0.1)
    # it answers after all: that must not pass for the next call's answer
    late = Xenstore(str(tmp_path / "domain"))
    postbox.post(late, "data/harness", postbox.ANSWER, postbox.ANSWERED, 1, '{"id": 1, "result": "one"}')
    late.close()
    with pytest.raises(TimeoutError):
        domain.call("guest", "tried.echo", {"text": "two"}, 0.1)
    assert server.nodes[f"{HOME}/data/harness/asked"].startswith(b'2 0 {"id": 2, ')


def test_a_short_call_costs_a_domain_two_messages(domain: ModuleType, server: Server, agent: None) -> None:
    domain.wait("guest", 20)
    domain.call("guest", "tried.echo", {"text": "one"}, 20)
    server.requests.clear()
    assert domain.call("guest", "tried.echo", {"text": "two"}, 20)["result"] == "two"
    theirs = [(name, body) for name, _, body in server.requests if body.startswith(b"data/")]
    assert [name for name, _ in theirs] == ["read", "write"]
    assert "watch" not in [name for name, _, _ in server.requests]


def test_a_domain_that_is_created_anew_has_another_number(domain: ModuleType, server: Server) -> None:
    assert domain.identify("guest") == 7
    server.nodes["/local/domain/8/name"] = server.nodes.pop(f"{HOME}/name")
    assert domain.identify("guest") == 8
    del server.nodes["/local/domain/8/name"]
    with pytest.raises(LookupError):
        domain.identify("guest")


def test_an_agent_that_is_forked_has_its_own_connection(
    domain: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert domain.identify("guest") == 7
    assert domain.identify("guest") == 7
    assert len(server.connections) == 1
    monkeypatch.setattr(sys.modules["once"].os, "getpid", lambda: -1)
    assert domain.identify("guest") == 7
    assert len(server.connections) == 2


def test_the_backends_of_virtio_devices_are_said_to_be_closed(domain: ModuleType, server: Server) -> None:
    assert domain.let_go("guest") == {"devices": 0}
    base = "/local/domain/0/backend/virtio/7"
    server.nodes |= {f"{base}/0/state": b"2", f"{base}/1/state": b"2", "/local/domain/0/backend/virtio/8/0/state": b"2"}
    assert domain.let_go("guest") == {"devices": 2}
    assert [server.nodes[f"{base}/{n}/state"] for n in (0, 1)] == [b"6", b"6"]
    assert server.nodes["/local/domain/0/backend/virtio/8/0/state"] == b"2"


def test_a_domain_that_is_not_there(domain: ModuleType) -> None:
    assert domain.identify("Domain-0") == 0
    with pytest.raises(LookupError, match="there is no domain nobody"):
        domain.identify("nobody")
    with pytest.raises(LookupError):
        domain.call("nobody", "tried.echo", {}, 1)


def test_a_text_is_put_whole_or_not_at_all(server: Server, tmp_path: Path) -> None:
    store = Xenstore(str(tmp_path / "dom0"))
    assert postbox.fetch(store, "/b", postbox.REQUEST, postbox.ASKED) == (0, "")
    server.conflicts = 1
    text = "0123456789" * 500
    postbox.post(store, "/b", postbox.REQUEST, postbox.ASKED, 3, text)
    assert postbox.fetch(store, "/b", postbox.REQUEST, postbox.ASKED) == (3, text)
    assert max(len(value) for value in server.nodes.values()) <= postbox.CHUNK_CHARS + len("3 3 ")
    # nothing of a longer one gets into a shorter one
    postbox.post(store, "/b", postbox.REQUEST, postbox.ASKED, 4, text[:2000])
    assert [path for path in server.nodes if path.startswith("/b/request/")] == ["/b/request/0"]
    assert postbox.fetch(store, "/b", postbox.REQUEST, postbox.ASKED) == (4, text[:2000])
    postbox.post(store, "/b", postbox.REQUEST, postbox.ASKED, 4, "short one")
    with pytest.raises(ValueError, match="too many"):
        postbox.post(store, "/b", postbox.REQUEST, postbox.ASKED, 5, "x" * (postbox.MAX_CHUNKS * 2000))
    assert postbox.fetch(store, "/b", postbox.REQUEST, postbox.ASKED) == (4, "short one")
    store.close()
