"""Imports only run downwards, and each outside thing has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent

#: Each room with all that it may import; rooms in one set do not import each other.
ORDER: tuple[frozenset[str], ...] = tuple(
    frozenset(rooms.split())
    for rooms in (
        "errors interrupts parallel places yaml_scalars",
        "deadline progress oops regex strict_yaml",
        "validate",
        "scenario images guest result result_files",
        "known_failure machine records",
        "report gate under_test",
        "testbed unrun",
        "steps",
        "runner",
        "workspace",
        "reproduce trials session",
        "plugin shell doctor components mutate bisect command",
        "commands",
        "cli",
        "program",
    )
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}

#: Modules that only these files may import.
DOORS = {
    "paramiko": ("guest/",),
    "qemu": ("machine/qmp.py",),
    "pexpect": ("machine/console.py",),
    "subprocess": ("machine/process.py", "images/tools.py"),
    "celpy": ("scenario/",),
    "yaml": ("strict_yaml.py",),
    "pytest": ("session.py", "plugin.py", "cli.py"),
    "sqlite3": ("records/history.py",),
}


def sources() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "probes" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "harness" or len(parts) == 1 or parts[1] == here:
            continue
        assert LEVEL[parts[1]] < LEVEL[here], f"{here} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_one_door_each(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for name in imports(path):
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or any(place.startswith(door) for door in doors), f"{place} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420
