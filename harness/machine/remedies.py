"""What a person can do about errors that a machine runs into."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.deadline import DeadlineExceeded
from harness.errors import GuestHang, HarnessError, HostError, LostConnection
from harness.machine.process import run_to_end

OLDEST_QEMU = (7, 2)

_WAITED = "ssh.jsonl says what it was asked; if it needs more time, raise the step's timeout_s"
HINTS: Mapping[type[HarnessError], str] = {
    GuestHang: _WAITED,
    DeadlineExceeded: _WAITED,
    LostConnection: "the machine still runs: was its SSH server, or the probe's process, killed?",
}
_VERSION = re.compile(r"version ((\d+)\.(\d+)\S*)")
_PATIENCE_S = 5


def blame_age(error: HarnessError, qemu: str) -> HarnessError:
    """The same error, which says so when this QEMU is older than any that is known to work.

    :param qemu: the program that did not start as it should.
    """
    version = _VERSION.search(run_to_end([qemu, "--version"], timeout_s=_PATIENCE_S))
    if isinstance(error, HostError) and version is not None and (int(version[2]), int(version[3])) < OLDEST_QEMU:
        error.message = f"QEMU {version[1]} is too old: {error.message}"
        error.hint = f"install QEMU {OLDEST_QEMU[0]}.{OLDEST_QEMU[1]} or newer"
    return error
