"""``repro.sh``: the same QEMU with the same images, without the harness."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from harness.machine.initrd import probes_segment
from harness.machine.spec import Wiring, qemu_argv

if TYPE_CHECKING:
    from harness.machine.machine import Machine

_INITRD = "$DIR/initrd"
_SCRIPT = """\
#!/bin/sh
# Boots the machine of this run again, its console on this terminal (Ctrl-A X ends QEMU).
# The run's SSH keys are not kept: the console's shell is the way in. Probes lie in /lib/harness/probes.
# On Xen it boots dom0 alone: what domains boot is not kept.
set -eu
HERE=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
DIR=$(mktemp -d)
trap 'rm -rf "$DIR"' EXIT
trap 'exit 130' INT TERM
cat {segments} > "$DIR/initrd"
{command}
"""


def write_repro(script: Path, machine: Machine) -> None:
    """Write the script, and beside it the small parts of the initramfs that are not in the store."""
    probes = script.parent / "probes.cpio"
    probes.write_bytes(probes_segment())
    kept = []
    for segment in machine.files.segments:
        if segment.is_relative_to(machine.scratch):  # it goes with the run: keep a copy
            copy = script.parent / segment.name
            copy.write_bytes(segment.read_bytes())
            kept.append(f'"$HERE"/{shlex.quote(copy.name)}')
        else:
            kept.append(shlex.quote(str(segment)))
    hypervisor = None if machine.files.hypervisor is None else str(machine.files.hypervisor)
    wiring = Wiring(kernel=str(machine.files.kernel), initrd=_INITRD, hypervisor=hypervisor)
    argv = qemu_argv(machine.plan, wiring, machine.accelerator.name)
    # The variable may stand in the midst of an option.
    words = [f'"{_INITRD}"'.join(shlex.quote(part) if part else "" for part in word.split(_INITRD)) for word in argv]
    script.write_text(
        _SCRIPT.format(segments=" ".join([*kept, f'"$HERE"/{probes.name}']), command=" ".join(words)), encoding="utf-8"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
