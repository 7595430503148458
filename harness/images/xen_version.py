"""What a Xen binary says of itself: nothing else tells what somebody has built by hand.

No single string has it. ``xen/common/version.c`` returns its parts from small functions, one after another, and the
linker's fingerprint lies in an ELF note. What cannot be read is left out, never guessed.
"""

from __future__ import annotations

import re

#: ``xen_major_version()``, ``xen_minor_version()``, ``xen_extra_version()`` on x86: two numbers, then a string's place.
#: With or without CET's landing pads and frame pointers; a return may go through a thunk.
_ENTRY = rb"(?:\xf3\x0f\x1e\xfa)?(?:\x55\x48\x89\xe5)?"
_LEAVE = rb"\x5d?(?:\xc3|\xe9.{4})(?:\xcc|[\x90\x66\x2e\x0f\x1f\x84\x80\x40\x44\0])*?"
_NUMBER = _ENTRY + rb"\xb8(.)\0\0\0" + _LEAVE
_X86 = re.compile(_NUMBER + _NUMBER + _ENTRY + rb"\x48\x8d\x05(.{4})", re.DOTALL)
#: On arm64 domains are told the first two (arch/arm/domain_build.c); version.c's strings lie side by side.
_ARM64 = re.compile(rb"\0xen,xen-(\d+\.\d+)\0")
_EXTRA = re.compile(rb"\0([.-][!-~]{1,15})\0+(?:[ -~]{4,64}\0+)?<denied>\0")
#: The version of a distribution's package, where it is built in.
_PACKAGE = re.compile(rb"(?<=\0)\d+\.\d+[\w.+~:]*-[\w.+~-]+(?=\0)")
_BUILD_ID = re.compile(rb"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0(.{20})", re.DOTALL)
_SHOWN = 16


def xen_version(image: bytes, package: str = "") -> str:
    """A hypervisor's version and build id: ``4.20.5-pre (4.20.4+63-g7abfd2bce2-0+deb13u1), build id 576c0736b3e38388``.

    :param image: without compression.
    :param package: of the source that it was built of, where the image does not say so.
    :return: what can be read of it; empty where that is nothing. Xen itself tells the build id in
        ``/sys/hypervisor/properties/buildid``.
    """
    packages = {found.decode() for found in _PACKAGE.findall(image)}
    named = packages.pop() if len(packages) == 1 else package
    number = _x86(image) or _arm64(image)
    whole = " ".join(filter(None, (number, f"({named})" if named and number else named)))
    ids = set(_BUILD_ID.findall(image))
    told = f"build id {ids.pop().hex()[:_SHOWN]}" if len(ids) == 1 else ""
    return ", ".join(filter(None, (whole, told)))


def _x86(image: bytes) -> str:
    places = list(_X86.finditer(image))
    if len(places) != 1:
        return ""
    major, minor, distance = places[0].groups()
    # The file is one piece of memory: what the code points to is as far away here as it is there.
    start = places[0].end() + int.from_bytes(distance, "little", signed=True)
    extra: bytes = image[start : start + 17].split(b"\0")[0] if start > 0 else b"?"
    if not re.fullmatch(rb"(?:[.-][!-~]{1,15})?", extra):
        return ""
    return f"{ord(major)}.{ord(minor)}{extra.decode()}"


def _arm64(image: bytes) -> str:
    numbers: set[str] = {found.decode() for found in _ARM64.findall(image)}
    extras: set[str] = {found.decode() for found in _EXTRA.findall(image)}
    if len(numbers) != 1:
        return ""
    return numbers.pop() + (extras.pop() if len(extras) == 1 else "")
