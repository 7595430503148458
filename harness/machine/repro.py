"""``repro.sh``: the same QEMU with the same images, without the harness."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.images.cpio import packed
from harness.images.tree import Tree
from harness.machine.boot_disk import Gap, disk_of
from harness.machine.spec import Wiring, qemu_argv

if TYPE_CHECKING:
    from harness.machine.machine import Machine

#: In a word of the command line, the script's own temporary directory.
_DIRECTORY = "$DIR"
_INITRD = f"{_DIRECTORY}/initrd"
_DISK = f"{_DIRECTORY}/boot-disk"
_SCRIPT = """\
#!/bin/sh
# Boots the machine of this run again, its console on this terminal (Ctrl-A X ends QEMU).
# The run's SSH keys are not kept: the console's shell is the way in. Probes lie in /lib/harness/probes.
# On Xen it boots dom0 alone: what domains boot is not kept.
set -eu
for FILE in {images}; do
    test -e "$FILE" || {{ echo "$0: $FILE is gone: it was removed from the image store." \\
        "Run the scenario again for a script that has it." >&2; exit 1; }}
done
HERE=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
trap 'exit 130' INT TERM
cat {segments} > "$DIR/initrd"
{disks}{command}
"""


def write_repro(script: Path, machine: Machine, late: Mapping[str, Path] | None = None) -> None:
    """Write the script, and beside it the small parts of the initramfs that are not in the store.

    :param late: files that the run brought to the guest once it was up, by their places in it. Here they are there
        from the start.
    """
    files = machine.files
    own = {path.name: path.read_bytes() for path in files.segments if path.is_relative_to(machine.scratch)}
    stored = [path for path in files.segments if not path.is_relative_to(machine.scratch)]
    if late:
        tree = Tree()
        for place, file in late.items():
            tree.file(place, file.read_bytes())
        own["under-test.cpio"] = packed(tree)
    for name, content in own.items():
        (script.parent / name).write_bytes(content)
    wiring = Wiring(
        kernel=str(files.kernel),
        initrd=_INITRD,
        hypervisor=None if files.hypervisor is None else str(files.hypervisor),
        disk=None if files.loader is None else _DISK,
        drives=_DIRECTORY,
    )
    argv = qemu_argv(machine.plan, wiring, machine.accelerator.name)
    initrd_bytes = sum(path.stat().st_size for path in stored) + sum(map(len, own.values()))
    images = [path for path in (files.kernel, files.hypervisor, files.loader, *stored) if path is not None]
    script.write_text(
        _SCRIPT.format(
            images=" ".join(shlex.quote(str(path)) for path in images),
            segments=" ".join(
                [*(shlex.quote(str(path)) for path in stored), *(f'"$HERE"/{shlex.quote(name)}' for name in own)]
            ),
            disks="".join(f"{line}\n" for line in _disks(script.parent, machine, initrd_bytes)),
            command=" ".join(map(_word, argv)),
        ),
        encoding="utf-8",
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


def _word(word: str) -> str:
    """A word as the shell takes it; its own directory may stand in the midst of it."""
    return f'"{_DIRECTORY}"'.join(shlex.quote(part) if part else "" for part in word.split(_DIRECTORY))


def _disks(results: Path, machine: Machine, initrd_bytes: int) -> Iterator[str]:
    """The commands that make the machine's disks; the small parts of the one that it boots from are kept."""
    for name, drive in machine.plan.profile.drives.items():
        yield f"truncate -s {drive.size_mib}M {_word(f'{_DIRECTORY}/{name}')}"
    if machine.files.loader is None:
        return
    initrd = Gap(initrd_bytes) if machine.plan.until is None else None
    parts = []
    for number, piece in enumerate(disk_of(machine.plan, machine.files, initrd)):
        if isinstance(piece, bytes):
            part = results / f"boot-disk.{number}"
            part.write_bytes(piece)
            parts.append(f'"$HERE"/{part.name}')
        else:
            parts.append(_word(_INITRD) if isinstance(piece, Gap) else shlex.quote(str(piece)))
    yield f"cat {' '.join(parts)} > {_word(_DISK)}"
