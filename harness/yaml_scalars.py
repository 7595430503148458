"""What an unquoted YAML scalar means to this harness: less than it may mean to a YAML reader, and never a surprise.

A plain scalar is ``true`` or ``false``; ``null``, ``~`` or nothing; a decimal or ``0x`` integer of 64 bits; a decimal
float; or a string. One that some YAML would read as something else (``no``, ``010``, ``1:30``, ``1_000``, ``.5``) is
refused with advice. Dates are strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)")
_CONSTANTS: Mapping[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}

# What some YAML would silently turn into something other than the text: looked at after the patterns above.
_SURPRISES = (
    (re.compile(r"(?i:true|false|null)"), "is a constant only in lower case", "write it in lower case, or quote it"),
    (re.compile(r"(?i:y|yes|on)"), "is a boolean to some YAML readers", "write true, or quote it"),
    (re.compile(r"(?i:n|no|off)"), "is a boolean to some YAML readers", "write false, or quote it"),
    (
        re.compile(r"[-+]?0(?:[0-9_]+|[oObB][0-9_]+)(?:\.[0-9_]*)?"),
        "has a leading zero, which is octal to some YAML readers",
        "write it in decimal or as 0x hexadecimal, or quote it",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(?::[0-9]{1,2})+(?:\.[0-9_]*)?"),
        "is a number in base 60 to some YAML readers",
        "quote it",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?"),
        "is a number to some YAML readers",
        "write plain digits, or quote it",
    ),
    (
        re.compile(r"[-+](?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|0[xX][0-9a-fA-F_]+)|0[xX][0-9a-fA-F_]+"),
        "is a number to some YAML readers",
        "write plain digits, or quote it",
    ),
    (
        re.compile(r"[-+]?(?:\.[0-9][0-9_]*|[0-9]+\.)(?:[eE][-+]?[0-9]+)?"),
        "is a number to some YAML readers",
        "write digits on both sides of the point, or quote it",
    ),
    (re.compile(r"[-+]?\.(?i:inf|nan)"), "is not a finite number", "quote it if it is text"),
)


class AmbiguousError(Exception):
    """YAML readers disagree about a scalar.

    :param why: what it is to some of them, to stand after the scalar itself.
    :param hint: how to write what was meant.
    """

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


def plain(text: str) -> bool | int | float | str | None:
    """What an unquoted scalar means.

    :raises AmbiguousError: when that is not plain to see.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        # Twenty characters hold any number of 64 bits; Python refuses to convert one of thousands of digits.
        integer = int(text, 16 if text.startswith("0x") else 10) if len(text) <= 20 else 2**64
        if not -(2**63) <= integer < 2**64:
            raise AmbiguousError("is a number that does not fit into 64 bits", "quote it if it is text")
        return integer
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise AmbiguousError("is a number that does not fit into a double", "quote it if it is text")
        return number
    for pattern, why, hint in _SURPRISES:
        if pattern.fullmatch(text):
            raise AmbiguousError(why, hint)
    return text
