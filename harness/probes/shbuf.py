"""A backend's shared buffers: described by page directories, allocated by either side."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.probes import pgdir
    from harness.probes.gnttab import Gntalloc, Gntdev, Pages
else:  # beside this file, in the guest
    import pgdir
    from gnttab import Gntalloc, Gntdev, Pages

NO_SUCH_REF = 0xFFFF_FFF0
"""A reference that no grant table has."""


class Buffer:
    """One shared buffer, its bytes mapped here.

    :param size: in bytes.
    :param directory: what the walk through its directory found.
    :param pages: its pages; None when they could not be mapped, or are not there on purpose.
    """

    def __init__(self, size: int, be_alloc: bool, directory: pgdir.Directory, pages: Pages | None) -> None:
        self.size = size
        self.be_alloc = be_alloc
        self.directory = directory
        self.pages = pages

    def describe(self) -> dict[str, Any]:
        """What its directory says, as JSON values; references to pages are counted, those of the directory listed."""
        found = self.directory
        return {
            "allocated_by": "backend" if self.be_alloc else "frontend",
            "size": self.size,
            "pages": pgdir.pages_of(self.size),
            "directory_pages": len(found.refs),
            "directory_refs": found.refs,
            "links": found.links,
            "grefs": len(found.grefs),
            "unique_grefs": len({*found.grefs, *(found.refs if not self.be_alloc else ())}),
            "zero_grefs": found.grefs.count(0),
            "spare_used": found.spare_used,
            "fault": found.fault,
        }


class Buffers:
    """All buffers of one backend.

    :param domain: the frontend's.
    """

    def __init__(self, domain: int) -> None:
        self._domain = domain
        self._gntdev = Gntdev()
        self._gntalloc: Gntalloc | None = None
        self.alive: dict[int, Buffer] = {}
        self.kept: list[Pages] = []
        self.last: Buffer | None = None
        self.keep = False
        """Whether buffers stay mapped when the frontend is told that they are not."""
        self.bogus_from: int | None = None
        """From which of the backend's own pages on the references that are given for them are no references."""

    def open(self, key: int, first: int, size: int, *, be_alloc: bool) -> None:
        """Take a new buffer, described by the directory that starts at grant reference ``first``.

        :raises OSError: when the directory or a page cannot be had; what the walk found is in :attr:`last` anyway.
        """
        if be_alloc:
            self.last = self._give(first, size)
        else:
            self.last = self._take(first, size)
        self.alive[key] = self.last

    def _take(self, first: int, size: int) -> Buffer:
        """Map what the frontend has allocated."""
        found = pgdir.walk(first, pgdir.pages_of(size), self._read)
        self.last = Buffer(size, False, found, None)
        if found.fault:
            raise OSError(errno.EINVAL, found.fault)
        try:
            self.last.pages = self._gntdev.map(self._domain, found.grefs)
        except OSError as error:
            found.fault = f"cannot map the buffer's pages: {error.strerror}"
            raise
        return self.last

    def _give(self, first: int, size: int) -> Buffer:
        """Allocate the pages, and tell the frontend by way of its directory."""
        count = pgdir.pages_of(size)
        found = pgdir.walk(first, 0, self._read)  # its words must all be 0 but for the links
        self.last = Buffer(size, True, found, None)
        if found.fault or len(found.refs) < pgdir.directory_pages_of(count):
            found.fault = found.fault or f"{len(found.refs)} directory pages do not do for {count} pages"
            raise OSError(errno.EINVAL, found.fault)
        if self._gntalloc is None:
            self._gntalloc = Gntalloc()
        pages = self._gntalloc.alloc(self._domain, count)
        found.grefs = list(pages.refs)
        told = list(pages.refs)
        if self.bogus_from is not None:
            told[self.bogus_from :] = [NO_SUCH_REF] * len(told[self.bogus_from :])
        directory = self._gntdev.map(self._domain, found.refs)
        pgdir.fill_directory(told, directory.memory)
        directory.close()
        self.last.pages = pages
        return self.last

    def _read(self, ref: int) -> bytes:
        page = self._gntdev.map(self._domain, [ref])
        content = bytes(page.memory)
        page.close()
        return content

    def close(self, key: int) -> None:
        """Let a buffer go.

        :raises OSError: ENOENT when there is none under this key.
        """
        if key not in self.alive:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        pages = self.alive.pop(key).pages
        if pages is not None and self.keep:
            self.kept.append(pages)
        elif pages is not None:
            pages.close()

    def drop_kept(self) -> int:
        """Unmap what stayed mapped; gives how many pages those were."""
        kept, self.kept = self.kept, []
        for pages in kept:
            pages.close()
        return sum(len(pages.refs) for pages in kept)

    def clear(self) -> None:
        """Let go of all buffers: the frontend is gone."""
        for key in list(self.alive):
            self.close(key)

    @property
    def mapped(self) -> int:
        """How many pages of buffers are mapped here, kept ones included."""
        alive = [buffer.pages for buffer in self.alive.values() if buffer.pages is not None]
        return sum(len(pages.refs) for pages in (*alive, *self.kept))
