"""A run's consoles, one file a layer, as far as a person wants to see them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from harness.oops.text import TAIL_BYTES, tail_lines
from harness.result import ScenarioResult

_PREFIX, _SUFFIX = "console-", ".log"
_TAIL_LINES = 20
_CRASH_LINES = 40


def console_files(results: Path | str) -> dict[str, Path]:
    """The console logs of one scenario's results directory, by layer; QEMU's own output is one."""
    results = Path(results)
    found = {path.name[len(_PREFIX) : -len(_SUFFIX)]: path for path in sorted(results.glob(f"{_PREFIX}*{_SUFFIX}"))}
    qemu = results / "qemu.log"
    return {**found, **({"qemu": qemu} if qemu.is_file() else {})}


def read_end(path: Path, size: int) -> bytes:
    """The last bytes of a file; nothing where it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size)
    return b""


def console_excerpt(result: ScenarioResult) -> str:
    """For a failure's text: what the consoles say of its crashes, else how each of them ends."""
    if "last console lines:" in result.reason:
        return ""
    return "".join(f"\n  {line}" for line in excerpt_of(result.crashes, result.results))


class _Crash(Protocol):
    @property
    def layer(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> Sequence[str]: ...


def excerpt_of(crashes: Sequence[_Crash], results: Path | str) -> list[str]:
    """Lines about each crash; where there is none, how each console ends."""
    lines: list[str] = []
    for crash in crashes:
        lines += [f"crash on {crash.layer}: {crash.title}", *(f"  {line}" for line in crash.text[:_CRASH_LINES])]
    for layer, path in () if lines else console_files(results).items():
        tail = tail_lines(read_end(path, TAIL_BYTES), _TAIL_LINES)
        lines += [f"{layer}: last console lines:", *(f"  {line}" for line in tail)] if tail else []
    return lines
