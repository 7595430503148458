"""Commands, for guests that have no SSH server."""

from __future__ import annotations

import subprocess
import time


def run(argv: list[str], seconds: float) -> dict[str, object]:
    """Run a command to its end, its input empty; -1 stands for the exit status of one that a signal ended.

    :raises subprocess.TimeoutExpired: it did not end in time, and was killed.
    """
    started = time.monotonic()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    return {
        "status": max(done.returncode, -1),
        "stdout": done.stdout.decode(errors="replace"),
        "stderr": done.stderr.decode(errors="replace"),
        "seconds": round(time.monotonic() - started, 3),
    }
