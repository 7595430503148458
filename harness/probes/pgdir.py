"""Page directories of shared buffers, and the bytes that are sent through them. Plain values only.

A directory page is 1024 little-endian words: a reference to the next directory page (0: none follows), and references
to up to 1023 pages of the buffer (include/xen/interface/io/displif.h, sndif.h: ``struct xendispl_page_directory``).
"""

from __future__ import annotations

import functools
import hashlib
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    import mmap
    from collections.abc import Callable, Iterator, Sequence

    Memory = bytearray | memoryview | mmap.mmap

PAGE = 4096
PER_PAGE = 1023
_STRIDE = 1021  # odd, so that it leads to each place of a page before it comes back
_WALK_LIMIT = 64  # a loop of links must end somewhere


def pages_of(size: int) -> int:
    """How many pages a buffer of ``size`` bytes has."""
    return -(-size // PAGE)


def directory_pages_of(pages: int) -> int:
    """How many directory pages a buffer of ``pages`` pages has to have."""
    return -(-pages // PER_PAGE)


class Directory:
    """What a walk through a directory found.

    :param refs: the directory's own pages, in order.
    :param links: each directory page's link to the next one.
    :param grefs: the buffer's pages, in order; fewer than the buffer has when the directory ends too early.
    :param spare_used: words behind the last page's reference that are not 0.
    :param fault: why the walk ended early; empty when it did not.
    """

    def __init__(self) -> None:
        self.refs: list[int] = []
        self.links: list[int] = []
        self.grefs: list[int] = []
        self.spare_used = 0
        self.fault = ""


def walk(first: int, pages: int, read: Callable[[int], bytes]) -> Directory:
    """Follow a directory from its first page to its end, however many pages the buffer has.

    :param first: the reference to its first page.
    :param pages: how many pages the buffer has.
    :param read: gives the bytes behind a reference, or raises OSError.
    """
    found = Directory()
    ref = first
    while ref:
        if ref in found.refs or len(found.refs) == _WALK_LIMIT:
            found.fault = f"the links lead back to {ref}" if ref in found.refs else "the links do not end"
            break
        found.refs.append(ref)
        try:
            words = struct.unpack("<1024I", read(ref))
        except OSError as error:
            found.fault = f"cannot map directory page {len(found.refs)}, reference {ref}: {error.strerror}"
            break
        here = min(PER_PAGE, pages - len(found.grefs))
        found.grefs.extend(words[1 : 1 + here])
        spare = words[1 + here :]
        found.spare_used += len(spare) - spare.count(0)
        found.links.append(words[0])
        ref = words[0]
    if not found.fault and len(found.grefs) < pages:
        found.fault = f"the directory ends after {len(found.grefs)} of {pages} pages"
    return found


def fill_directory(grefs: Sequence[int], directory: Memory) -> None:
    """Write a backend's own references into directory pages, whose links it must not touch.

    :param directory: the pages, in order.
    """
    for number in range(directory_pages_of(len(grefs))):
        part = grefs[number * PER_PAGE : (number + 1) * PER_PAGE]
        struct.pack_into(f"<{len(part)}I", directory, number * PAGE + 4, *part)


@functools.lru_cache(maxsize=8)
def _base(seed: int) -> bytes:
    return hashlib.shake_128(struct.pack("<Q", seed)).digest(2 * PAGE)


def pattern(seed: int, page: int) -> bytes:
    """The bytes of one page: they differ between any two pages and any two seeds.

    Its number, and a window of random bytes that is another one for each of 4096 pages. A hash of each page would do as
    well, but take most of a transfer's time.
    """
    start = page * _STRIDE % PAGE
    return struct.pack("<Q", page) + _base(seed)[start + 8 : start + PAGE]


def fill(memory: Memory, size: int, seed: int, offset: int = 0) -> None:
    """Write the pattern into ``size`` bytes from ``offset`` on, of a buffer whose pattern starts at its byte 0."""
    for start, wanted in _pieces(offset, size, seed):
        memory[start : start + len(wanted)] = wanted


def compare(memory: Memory, size: int, seed: int, offset: int = 0) -> dict[str, int]:
    """Compare every byte with the pattern.

    Gives how many bytes were looked at, how many are wrong, in how many pages, and the first such page (-1: none).
    """
    wrong = wrong_pages = 0
    first = -1
    for start, wanted in _pieces(offset, size, seed):
        found = bytes(memory[start : start + len(wanted)])
        if found != wanted:
            wrong += sum(1 for a, b in zip(found, wanted, strict=True) if a != b)
            wrong_pages += 1
            first = start // PAGE if first < 0 else first
    return {"bytes": size, "wrong": wrong, "wrong_pages": wrong_pages, "first_wrong_page": first}


def _pieces(offset: int, size: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a range that lie in one page each: where each starts, and its bytes of the pattern."""
    end = offset + size
    for page in range(offset // PAGE, pages_of(end)):
        start, wanted = page * PAGE, pattern(seed, page)
        if start < offset or start + PAGE > end:
            wanted = wanted[max(0, offset - start) : end - start]
            start = max(start, offset)
        yield start, wanted
