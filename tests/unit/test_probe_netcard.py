"""The probe that moves bytes through a network card, and this host's end of it, on loopback in the place of a card."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness.deadline import Deadline
from harness.machine.network import exchange

PROBES = Path(__file__).parents[2] / "harness" / "probes"
MAC = "52:54:00:12:34:57"
KIB = 1024


@pytest.fixture
def netcard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The probe, in a guest that has one card; an ifconfig that says what it was told stands first in the path."""
    (tmp_path / "net" / "eth1" / "statistics").mkdir(parents=True)
    (tmp_path / "net" / "eth1" / "address").write_text(f"{MAC}\n")
    for way in ("rx", "tx"):
        (tmp_path / "net" / "eth1" / "statistics" / f"{way}_bytes").write_text("7\n")
    (tmp_path / "ifconfig").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told\nexit "$(cat {tmp_path}/status)"\n')
    (tmp_path / "ifconfig").chmod(0o755)
    (tmp_path / "status").write_text("0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.syspath_prepend(str(PROBES))
    for name in ("netcard", "holders"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("netcard")
    monkeypatch.setattr(module, "INTERFACES", str(tmp_path / "net"))
    yield module
    for holder in list(module.holders._holders):
        module.holders.end(holder, kill=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def soon() -> Deadline:
    return Deadline.after(10, "a test")


def test_each_end_tells_of_the_same_bytes(netcard: ModuleType, tmp_path: Path) -> None:
    port, mine = free_port(), os.urandom(300 * KIB)
    for _ in range(2):  # and once more on the same card
        assert netcard.listen(MAC, "127.0.0.1", port, len(mine), 10) == {"interface": "eth1", "error": ""}
        received, error = exchange(port, mine, len(mine), soon())
        seen = netcard.result()
        assert (error, seen["error"], len(received)) == ("", "", len(mine))
        assert seen["received_sha256"] == hashlib.sha256(mine).hexdigest()
        assert seen["sent_sha256"] == hashlib.sha256(received).hexdigest()
        assert seen["sent_sha256"] != seen["received_sha256"]
        assert (seen["card_received_bytes"], seen["card_sent_bytes"]) == (0, 0)
    assert (tmp_path / "told").read_text() == "eth1 127.0.0.1 netmask 255.255.255.0 up\n"


def test_what_is_lost_on_the_way_is_told(netcard: ModuleType) -> None:
    port = free_port()
    netcard.listen(MAC, "127.0.0.1", port, 64 * KIB, 0.2)
    received, error = exchange(port, bytes(63 * KIB), 64 * KIB, soon())
    assert (received, "closed" in error or "reset" in error) == (b"", True)
    seen = netcard.result()
    assert "timed out" in seen["error"]
    assert seen["received_sha256"] != hashlib.sha256(bytes(64 * KIB)).hexdigest()


def test_a_guest_that_sends_too_little_is_told(netcard: ModuleType) -> None:
    port = free_port()
    netcard.listen(MAC, "127.0.0.1", port, 16, 10)
    received, error = exchange(port, bytes(16), 32, Deadline.after(0.3, "a test"))
    assert len(received) == 16
    assert error == "timed out after 16 bytes"


def test_a_process_that_dies_is_told(netcard: ModuleType) -> None:
    netcard.listen(MAC, "127.0.0.1", free_port(), 16, 10)
    os.kill(netcard.holders._holders["netcard"][0], signal.SIGKILL)
    seen = netcard.result()
    assert "died of signal 9" in seen["error"]
    assert seen["received_sha256"] == ""


def test_nobody_at_the_other_end() -> None:
    received, error = exchange(free_port(), b"x", 1, soon())
    assert received == b""
    assert "refused" in error


def test_a_card_that_is_not_there_or_cannot_be_set_up(netcard: ModuleType, tmp_path: Path) -> None:
    seen = netcard.listen("52:54:00:00:00:00", "127.0.0.1", 7, 1, 1)
    assert seen["interface"] == ""
    assert "52:54:00:00:00:00" in seen["error"]
    assert "eth1" in seen["error"]
    (tmp_path / "status").write_text("3")
    for _ in range(2):
        seen = netcard.listen(MAC, "127.0.0.1", 7, 1, 10)
        assert seen["interface"] == "eth1"
        assert "exit status 3" in seen["error"]


def test_a_card_whose_setting_up_hangs(netcard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: netcard.select.select([], [], [], 30))
    assert netcard.listen(MAC, "127.0.0.1", 7, 1, 0.2)["error"] == "eth1 cannot be set up in 0 s"
