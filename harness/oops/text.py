"""Making what a guest says safe to show: on a terminal, in a report, in XML."""

from __future__ import annotations

import re
from typing import Final

# A string sequence (OSC, DCS, SOS, PM, APC) that never ends loses its introducer only: its text is inert without it,
# and swallowing up to the end of the log would hide what the guest said afterwards.
_SEQUENCE: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*+(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*+[0-~]"
)
# Controls but newline and tab; then what reorders or splits lines on a terminal (bidirectional marks, line separators);
# then what XML and UTF-8 cannot carry.
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)

TAIL_BYTES: Final = 64 * 1024
LINE_CHARS: Final = 400


def sanitize(text: str | bytes) -> str:
    """What a guest said, without what would make a terminal act: control characters and ANSI sequences.

    Newlines stay and a tab becomes spaces; carriage returns go. Bytes are read as UTF-8, and what is not UTF-8 becomes
    U+FFFD. Sanitizing twice changes nothing more.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return _CONTROL.sub("", _SEQUENCE.sub("", text)).expandtabs(8)


def sanitize_line(raw: bytes) -> str:
    """One line of a console for a person to read: sanitized, at most :data:`LINE_CHARS` characters, no line end."""
    # Cut before decoding: a line can be as long as the guest likes, and only its beginning is shown. The factor leaves
    # room for colours and for characters of several bytes.
    return sanitize(raw[: 8 * LINE_CHARS].rstrip(b"\r\n")).replace("\n", " ").rstrip()[:LINE_CHARS]


def tail_lines(data: bytes, count: int = 20) -> tuple[str, ...]:
    """The last ``count`` lines of a console, oldest first, free of control characters.

    :param data: the console's bytes or their end; no more than the last 64 KiB are looked at.
    :param count: how many lines; blank lines at the very end do not count.
    """
    if count <= 0:
        return ()
    lines = [sanitize_line(line) for line in data[-TAIL_BYTES:].rstrip().split(b"\n")[-count:]]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)
