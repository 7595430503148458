"""Xen's console as libxenctrl gives it: piece by piece, by an index that Xen moves."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from harness.probes import xenctrl

RING = 1 << 8


class Xen:
    """The two calls, over a ring as ``read_console_ring()`` reads it (xen/drivers/char/console.c)."""

    def __init__(self) -> None:
        self.said = b"booted\n"
        self.answers: dict[bytes, bytes] = {}
        self.opened = 0
        self.xc_interface_open: Any = self._open

    def _open(self, *_: object) -> int:
        self.opened += 1
        return 1

    def xc_interface_close(self, _: object) -> int:
        self.opened -= 1
        return 0

    def xc_readconsolering(self, _: object, buffer: Any, count: Any, clear: int, incremental: int, index: Any) -> int:
        assert (clear, incremental) == (0, 1)
        oldest, newest = max(0, len(self.said) - RING), len(self.said)
        start = index._obj.value if oldest < index._obj.value <= newest else oldest
        part = self.said[start : start + min(count._obj.value, 100)]
        ctypes.memmove(buffer, part, len(part))
        count._obj.value, index._obj.value = len(part), start + len(part)
        return 0

    def xc_send_debug_keys(self, _: object, keys: bytes) -> int:
        self.said += self.answers.get(keys, b"")
        return 0 if keys in self.answers else -1


@pytest.fixture
def xen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Xen:
    made = Xen()
    made.xc_interface_open = type("Function", (), {"restype": None, "__call__": lambda _, *given: made._open(*given)})()
    (tmp_path / "libxenctrl.so.4.20").touch()
    monkeypatch.setattr(xenctrl, "_LIBRARY", str(tmp_path / "libxenctrl.so.*"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: made)
    return made


def test_a_reader_hears_what_comes_after_it(xen: Xen) -> None:
    console = xenctrl.Console()
    assert console.read() == ""
    xen.said += b"a" * 150 + b"\n"
    assert console.read() == "a" * 150 + "\n"
    assert console.read() == ""
    console.close()
    assert xen.opened == 0


def test_a_reader_that_was_overtaken_goes_on_with_the_oldest(xen: Xen) -> None:
    console = xenctrl.Console()
    xen.said += b"lost" + b"b" * RING
    assert console.read() == "b" * RING


def test_a_debug_key_is_read_to_its_end(xen: Xen) -> None:
    xen.answers = {b"g": b"grants [\n" + b"x" * 120 + b"\ngrants ]\n"}
    assert xenctrl.Console().press("g", "grants ]", 1).endswith("x\ngrants ]\n")


def test_a_debug_key_without_an_end_says_what_there_was(xen: Xen) -> None:
    xen.answers = {b"g": b"grants [\n"}
    with pytest.raises(TimeoutError, match=r"printed no end: grants \["):
        xenctrl.Console().press("g", "grants ]", 0.05)


def test_what_xen_refuses_is_an_error(xen: Xen) -> None:
    with pytest.raises(OSError, match="xc_send_debug_keys"):
        xenctrl.Console().press("g", "]", 1)
    assert xen.opened == 1


def test_without_the_library_it_says_where_it_looked(xen: Xen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xenctrl, "_LIBRARY", "/nowhere/libxenctrl.so.*")
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        xenctrl.Console()
    assert xen.opened == 0
