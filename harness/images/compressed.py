"""Data inside kernel packages, without its compression."""

from __future__ import annotations

import lzma
import zlib
from pathlib import Path
from tempfile import NamedTemporaryFile

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import tools

_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\0"
ZSTD = b"\x28\xb5\x2f\xfd"


def decompressed(data: bytes, what: str, scratch: Path, deadline: Deadline) -> bytes:
    """Data as it was before gzip, xz or zstd; as it is when its first bytes name none of them.

    :param what: whose data it is, for the error.
    :raises HostError: it is damaged.
    """
    try:
        if data.startswith(_XZ):
            # Linux appends the size to what it compresses, so there may be bytes after the end.
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)
        if data.startswith(_GZIP):
            return zlib.decompressobj(wbits=31).decompress(data)
    except (lzma.LZMAError, zlib.error) as error:
        raise HostError(f"{what} is damaged: {error}", hint="harness images prune, then build again") from error
    if data.startswith(ZSTD):
        return _unzstd(data, what, scratch, deadline)
    return data


def _unzstd(data: bytes, what: str, scratch: Path, deadline: Deadline) -> bytes:
    # Python has zstd from 3.14 on.
    with NamedTemporaryFile(dir=scratch) as source, NamedTemporaryFile(dir=scratch) as target:
        source.write(data)
        source.flush()
        tools.run(
            ["zstd", "--decompress", "--stdout", source.name],
            hint=f"{what} is damaged: harness images prune, then build again",
            deadline=deadline,
            stdout=target.file,
        )
        target.seek(0)
        return target.read()
