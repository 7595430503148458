"""What is read of a Xen binary: from bytes as compilers and linkers leave them, in the order that they do."""

from __future__ import annotations

import struct

import pytest

from harness.images.xen_version import xen_version

NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0" + bytes(range(0xA0, 0xB4))
SHOWN = "build id a0a1a2a3a4a5a6a7"
PACKAGE = b"\x004.20.4+63-g7abfd2bce2-0+deb13u1\0x86_64-linux-gnu-gcc (Debian 14.2.0-19) 14.2.0\0"
THUNK = b"\xe9\xd6\xe9\xfb\xff" + b"\x90" * 6
BARE = (b"", THUNK)
PLAIN_RETURN = (b"", b"\xc3" + b"\xcc" * 10)
ALIGNED = (b"", b"\xc3" + b"\x66\x2e\x0f\x1f\x84\0\0\0\0\0")
GUARDED = (b"\xf3\x0f\x1e\xfa", THUNK)
FRAMED = (b"\xf3\x0f\x1e\xfa\x55\x48\x89\xe5", b"\x5d" + THUNK)


def x86(extra: bytes, enter: bytes = b"", leave: bytes = THUNK, minor: int = 20) -> bytes:
    """``xen_major_version()`` and its neighbours, and at some distance before them the string."""
    strings = b"\x7fELF" + bytes(60) + extra + b"\0" + b"other\0"
    numbers = b"".join(enter + b"\xb8" + struct.pack("<I", number) + leave for number in (4, minor))
    code = enter + b"\x48\x8d\x05"
    distance = 64 - (len(strings) + len(numbers) + len(code) + 4)
    return strings + numbers + code + struct.pack("<i", distance) + leave + bytes(50)


def arm64(extra: bytes, changeset: bytes = b"") -> bytes:
    strings = b"aarch64-linux-gnu-gcc (Debian 14.2.0-19) 14.2.0\0" + extra + b"\0\0" + changeset + b"\0<denied>\0\0"
    return b"MZ" + bytes(60) + b"\0xentrace\0.rodata\0" + strings + b"\0xen,xen-4.20\0xen,xen\0"


@pytest.mark.parametrize(("enter", "leave"), [BARE, PLAIN_RETURN, ALIGNED, GUARDED, FRAMED])
def test_on_x86_the_code_that_tells_it_is_read(enter: bytes, leave: bytes) -> None:
    assert xen_version(x86(b".5-pre", enter, leave) + NOTE) == f"4.20.5-pre, {SHOWN}"
    assert xen_version(x86(b"", enter, leave)) == "4.20"


def test_on_arm64_its_strings_are() -> None:
    assert xen_version(arm64(b".4-pre") + NOTE) == f"4.20.4-pre, {SHOWN}"
    assert xen_version(arm64(b"-unstable", b"Tue Nov 3 2026 git:1234abcd-dirty")) == "4.20-unstable"


def test_the_version_of_a_package_is_told_beside() -> None:
    named = "4.20.4+63-g7abfd2bce2-0+deb13u1"
    assert xen_version(x86(b".5-pre") + PACKAGE + NOTE) == f"4.20.5-pre ({named}), {SHOWN}"
    assert xen_version(arm64(b".5-pre") + PACKAGE) == f"4.20.5-pre ({named})"
    assert xen_version(b"\x7fELF" + PACKAGE) == named
    assert xen_version(x86(b".5-pre"), "4.20.3-1") == "4.20.5-pre (4.20.3-1)"
    assert xen_version(x86(b".5-pre") + PACKAGE, "4.20.3-1") == f"4.20.5-pre ({named})", "what it says itself"


def test_what_cannot_be_read_is_not_guessed() -> None:
    assert xen_version(b"") == ""
    assert xen_version(b"\x7fELF" + bytes(100) + NOTE) == SHOWN
    twice = x86(b".5-pre") + x86(b".6")
    assert xen_version(twice) == ""
    assert xen_version(x86(b"no version at all")) == ""
    assert xen_version(arm64(b".4-pre") + b"\0xen,xen-4.21\0") == ""
    assert xen_version(NOTE + NOTE[:-1] + b"\xff") == "", "of two build ids none is it"
