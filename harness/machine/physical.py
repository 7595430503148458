"""A machine's physical memory and device registers, read through QEMU's monitor while the guest knows nothing of it."""

from __future__ import annotations

import secrets
from pathlib import Path

from harness.machine.qmp import Monitor

PAGE = 4096
_BATCH_BYTES = 64 << 10


class PhysicalMemory:
    """Reads what lies at physical addresses (QMP ``pmemsave``).

    Pages that tables are likely to lie beside are read with them: a call of the monitor costs more than 64 KiB.

    :param scratch: a directory for a file, for a moment.
    """

    def __init__(self, monitor: Monitor, scratch: Path) -> None:
        self._monitor = monitor
        self._scratch = scratch
        self._cache: dict[int, bytes] = {}

    def registers(self, address: int, size: int) -> bytes:
        """A device's registers. They are read anew each time.

        :raises HostError: QEMU refuses.
        """
        return self._read(address, size)

    def page(self, address: int) -> bytes:
        """The page at an address that is a multiple of 4096. It is read once.

        :raises HostError: QEMU refuses.
        """
        block = address - address % _BATCH_BYTES
        if block not in self._cache:
            self._cache[block] = self._read(block, _BATCH_BYTES)
        return self._cache[block][address - block : address - block + PAGE]

    def _read(self, address: int, size: int) -> bytes:
        target = self._scratch / f"memory-{secrets.token_hex(4)}"
        try:
            self._monitor.execute("pmemsave", {"val": address, "size": size, "filename": str(target)})
            return target.read_bytes()
        finally:
            target.unlink(missing_ok=True)
