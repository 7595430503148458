"""Patches of the user's, applied to a build directory in a toolchain's root."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildFailed, HostError
from harness.images.toolchain import BUILD, Toolchain

_INEXACT = "inexact"
_NAME = "under-test.patch"
_FILE = re.compile(r"^(?:patching|checking) file '?(?P<file>[^']+?)'?$")
_HUNK = re.compile(r"^Hunk #(?P<hunk>\d+) (?:FAILED|NOT MERGED) at (?P<line>\d+)")
_FUZZ = re.compile(
    r"^Hunk #(?P<hunk>\d+) succeeded at (?P<line>\d+) with fuzz (?P<fuzz>\d+)(?: \(offset (?P<offset>-?\d+ lines?)\))?"
)
_NO_FILE = re.compile(r"^[|+-]{1,4} ?(?:\+\+\+|---) (?:[ab]/)?(?P<file>\S+)")


def apply(
    toolchain: Toolchain, patches: Sequence[tuple[Path, bytes]], build: Path, known: str, deadline: Deadline
) -> dict[str, str]:
    """Apply patches in order, as ``patch -p1`` does.

    :param patches: where the user has each, and its content.
    :param known: what can be patched, for the hint.
    :return: what an image keeps of it, so that whoever finds that in the store is told, too; see :func:`inexact_hunks`.
    :raises BuildFailed: one does not apply; says which file and hunk.
    """
    found = []
    for number, (source, content) in enumerate(patches):
        (build / _NAME).write_bytes(content)
        argv = ["patch", "-p1", "--forward", "--batch", "--no-backup-if-mismatch", "-i", str(BUILD / _NAME)]
        lines: list[str] = []
        try:
            toolchain.run(argv, build, deadline, on_line=lines.append)
        except HostError as error:
            if not lines:
                raise
            raise BuildFailed(
                f"{source} does not apply: {refusal(lines)}", hint=f"it must apply to {known}", tail=lines[-20:]
            ) from error
        finally:
            (build / _NAME).unlink()
        found += [(number, line) for line in fuzzy(lines)]
    return {_INEXACT: json.dumps(found)} if found else {}


def inexact_hunks(facts: Mapping[str, str], sources: Sequence[Path]) -> tuple[str, ...]:
    """What does not fit exactly and was taken all the same, a line for each hunk.

    :param facts: as :func:`apply` gave them.
    :param sources: where the patches are now.
    """
    return tuple(f"{sources[number]}: {line}" for number, line in json.loads(facts.get(_INEXACT, "[]")))


def fuzzy(lines: Sequence[str]) -> list[str]:
    """The hunks that ``patch`` took with fuzz, from what it printed.

    Lines of their context differ from the source, so each may be in a wrong place. One that has only moved has all of
    its context where it is now, and is not told of.
    """
    told = []
    file = ""
    for line in lines:
        if match := _FILE.match(line):
            file = match["file"]
        elif match := _FUZZ.match(line):
            moved = f", {match['offset']} from where it should be" if match["offset"] else ""
            fuzz = f"fits only with fuzz {match['fuzz']}, at line {match['line']}{moved}"
            told.append(f"{file}, hunk {match['hunk']} {fuzz}")
    return told


def refusal(lines: Sequence[str]) -> str:
    """Which file and hunk ``patch`` refused, from what it printed."""
    file = ""
    for number, line in enumerate(lines):
        if match := _FILE.match(line):
            file = match["file"]
        elif match := _HUNK.match(line):
            return f"{file}, hunk {match['hunk']} at line {match['line']}"
        elif "can't find file to patch" in line:
            named = [found["file"] for text in lines[number:] if (found := _NO_FILE.match(text))]
            return f"there is no {named[-1] if named else 'such file'}"
        elif "previously applied" in line or "already exists" in line:
            return f"{file}: it is applied already"
    return lines[-1]
