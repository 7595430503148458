"""The console of a domain of Xen's: dom0 keeps it in a file, and this brings it here as it grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.deadline import Deadline
from harness.guest.ssh import Ssh, Stream
from harness.machine.console import Console

#: The end of its input is the end of the connection: alone, tail would go on in a saved machine.
_FOLLOW = 'tail -F -c "$1" "$2" & cat >/dev/null; kill $!'


class DomainConsole(Console):
    """One domain's console.

    Where it has come to is told by the log alone, so it goes on after a new connection, and begins at the beginning
    when the machine is a saved one whose domain has been running for a while.

    :param source: the file in dom0.
    """

    ends_machine = False

    def __init__(self, layer: str, log: Path, source: str) -> None:
        super().__init__(layer, "linux", log)
        self._source = source
        self._stream: Stream | None = None

    def follow(self, ssh: Ssh, deadline: Deadline) -> None:
        """Go on over this connection. The file need not exist yet."""
        self._fetch()
        self._stream = ssh.stream(["sh", "-c", _FOLLOW, "sh", f"+{self._size + 1}", self._source], deadline)

    def catch_up(self, ssh: Ssh, deadline: Deadline) -> None:
        """Bring the rest now; ``tail`` looks once a second only. Nothing is followed afterwards."""
        if self._stream is not None:
            self._stream.close()
        self._fetch()
        self._stream = None
        done = ssh.run(["tail", "-c", f"+{self._size + 1}", self._source], deadline=deadline, check_status=False)
        self._append(done.stdout)

    def _new_blocks(self) -> Iterator[bytes]:
        self._fetch()
        yield from super()._new_blocks()

    def _fetch(self) -> None:
        if self._stream is not None:
            self._append(self._stream.read())

    def _append(self, data: bytes) -> None:
        if data:
            with self.log.open("ab") as file:
                file.write(data)

    @property
    def _size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0
