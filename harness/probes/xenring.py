"""The backend's end of a Xen I/O ring and of an event page, over a mapped page.

Layouts: include/xen/interface/io/ring.h (``struct xen_displif_sring``: four counters, padding to 64 bytes, 32 slots of
64 bytes), displif.h and sndif.h (``struct xendispl_event_page``: two counters, padding, 63 slots of 64 bytes). A
counter is an aligned 32-bit word that is written with one store; a system call tells the other end.
"""

from __future__ import annotations

import ctypes
import mmap

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    Memory = mmap.mmap | bytearray

SLOT = 64
_HEADER = 64
_REQ_PROD, _REQ_EVENT, _RSP_PROD, _RSP_EVENT = 0, 1, 2, 3
_IN_CONS, _IN_PROD = 0, 1
_U32 = 1 << 32


class _Counters:
    """The 32-bit words at the start of a page."""

    def __init__(self, memory: Memory) -> None:
        self._words = (ctypes.c_uint32 * 4).from_buffer(memory)

    def __getitem__(self, number: int) -> int:
        return int(self._words[number])

    def __setitem__(self, number: int, value: int) -> None:
        self._words[number] = value % _U32

    def close(self) -> None:
        """Let go of the page: a mapping that something points into cannot be closed."""
        del self._words


class BackRing:
    """Takes requests and gives responses."""

    SLOTS = 32

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._counters = _Counters(memory)
        self._consumed = self._counters[_RSP_PROD]

    def requests(self) -> list[bytes]:
        """All requests that are there, oldest first; asks for an event for the next one.

        :raises ValueError: when the frontend says that there are more than the ring can hold.
        """
        taken = []
        while True:
            produced = self._counters[_REQ_PROD]
            count = (produced - self._consumed) % _U32
            if count > self.SLOTS:
                raise ValueError(f"the frontend claims {count} requests on a ring of {self.SLOTS}")
            for number in range(count):
                at = self._at(self._consumed + number)
                taken.append(bytes(self._memory[at : at + SLOT]))
            self._consumed = produced
            self._counters[_REQ_EVENT] = produced + 1
            if self._counters[_REQ_PROD] == produced:  # one may have come before the frontend saw the line above
                return taken

    def respond(self, response: bytes) -> bool:
        """Put a response on the ring; whether the frontend wants an event for it."""
        old = self._counters[_RSP_PROD]
        at = self._at(old)
        self._memory[at : at + SLOT] = response.ljust(SLOT, b"\0")
        self._counters[_RSP_PROD] = old + 1
        return self._counters[_RSP_EVENT] == (old + 1) % _U32

    def _at(self, number: int) -> int:
        return _HEADER + number % self.SLOTS * SLOT

    def close(self) -> None:
        """Let go of the page."""
        self._counters.close()


class EventPage:
    """Gives events; the frontend need not take them."""

    SLOTS = 63

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._counters = _Counters(memory)

    @property
    def pending(self) -> int:
        """How many events the frontend has not taken yet."""
        return (self._counters[_IN_PROD] - self._counters[_IN_CONS]) % _U32

    def put(self, event: bytes) -> None:
        """Put an event on the page.

        :raises ValueError: when the frontend has not taken any for so long that the page is full.
        """
        if self.pending >= self.SLOTS:
            raise ValueError("the event page is full")
        produced = self._counters[_IN_PROD]
        at = _HEADER + produced % self.SLOTS * SLOT
        self._memory[at : at + SLOT] = event.ljust(SLOT, b"\0")
        self._counters[_IN_PROD] = produced + 1

    def close(self) -> None:
        """Let go of the page."""
        self._counters.close()
