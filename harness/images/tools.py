"""The image builder's one door to other programs."""

from __future__ import annotations

import errno
import os
import re
import selectors
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness.deadline import Deadline
from harness.errors import HostError
from harness.parallel import stopped

_PACKAGES = {
    "apt-cache": "apt",
    "apt-config": "apt",
    "apt-get": "apt",
    "bwrap": "bubblewrap",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
    "zstd": "zstd",
}
"""Which Debian package brings a program."""

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_CARRIED = frozenset({"PATH", "HOME", "TMPDIR", *_PROXIES, *(name.upper() for name in _PROXIES)})
_TAIL_LINES = 20
#: How long it may take until a program ends whose work is to stop.
_LOOK_S = 0.5
_SHELL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(program: str) -> str:
    """Where ``program`` is. An ordinary user's PATH may lack the sbin directories, so they are looked in too.

    :raises HostError: it is not installed; the hint names the package.
    """
    path = f"{os.environ.get('PATH', '')}:{_SHELL_PATH}"
    found = shutil.which(program, path=path)
    if found is None:
        raise HostError(f"{program} is not installed", hint=f"apt install {_PACKAGES.get(program, program)}")
    return found


def run(
    argv: Sequence[str | Path],
    *,
    hint: str,
    deadline: Deadline,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: IO[bytes] | None = None,
    on_line: Callable[[str], None] | None = None,
    merge: bool = False,
) -> str:
    """Run a program to its end and give what it wrote to standard output.

    It sees a minimal environment in the C locale, and the kernel kills it when the thread that started it dies.

    :param argv: the program, by name or path, and its arguments.
    :param hint: what the reader can do when it fails.
    :param deadline: when it is killed, its children with it.
    :param env: added to the environment.
    :param stdout: takes standard output instead; the answer is then empty.
    :param on_line: called for each line of standard output as it comes.
    :param merge: whether standard error goes where standard output goes.
    :raises HostError: it is missing, failed, or was too slow; carries what it wrote to standard error.
    :raises OSError: ENOSPC, when it failed because a disk is full.
    """
    program = Path(argv[0]).name
    path = str(argv[0]) if "/" in str(argv[0]) else find(program)
    with subprocess.Popen(
        [find("setpriv"), "--pdeathsig", "KILL", "--", path, *map(str, argv[1:])],
        stdin=subprocess.DEVNULL,
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.STDOUT if merge else subprocess.PIPE,
        cwd=cwd,
        env={
            **{name: value for name, value in os.environ.items() if name in _CARRIED},
            "LC_ALL": "C",
            **(env or {}),
        },
        start_new_session=True,
    ) as process:
        try:
            out, err = _drain(process, deadline, on_line)
            status = process.wait(max(1.0, deadline.remaining_s))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, TimeoutError | subprocess.TimeoutExpired):
                raise HostError(f"{program} did not end in time: {deadline.what}", hint=hint) from None
            raise
    if status != 0:
        raise _failure(program, status, (out if merge else err).decode(errors="replace"), hint)
    return out.decode(errors="replace")


def _drain(
    process: subprocess.Popen[bytes], deadline: Deadline, on_line: Callable[[str], None] | None
) -> tuple[bytes, bytes]:
    """Read both pipes until they close, and give what came out of each."""
    out, err = bytearray(), bytearray()
    seen = 0
    with selectors.DefaultSelector() as selector:
        for stream, buffer in ((process.stdout, out), (process.stderr, err)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, buffer)
        while selector.get_map():
            ready = selector.select(min(_LOOK_S, deadline.remaining_s))
            if stopped():
                raise KeyboardInterrupt
            if not ready and deadline.expired:
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                key.data.extend(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
            end = out.rfind(b"\n") + 1
            if on_line is not None and end > seen:
                for line in out[seen:end].decode(errors="replace").splitlines():
                    on_line(line)
                seen = end
    return bytes(out), bytes(err)


def _failure(program: str, status: int, err: str, hint: str) -> Exception:
    """The error for a program that failed: a full disk as such, for whoever knows which disk; else a HostError."""
    if re.search(r"No space left on device|Disk quota exceeded|enough free space", err):
        return OSError(errno.ENOSPC, f"{program}: {os.strerror(errno.ENOSPC)}")
    plain = ("".join(char if char.isprintable() else " " for char in line).strip() for line in err.splitlines())
    lines = [line for line in plain if line]
    how = f"was killed by signal {-status}" if status < 0 else f"failed with status {status}"
    reason = f": {lines[-1]}" if lines else ""
    return HostError(f"{program} {how}{reason}", hint=hint, tail=lines[-_TAIL_LINES:])
