"""Regular expressions that people write in scenarios: RE2's, whose running time is linear in the text.

A scenario is untrusted, and with Python's own a short pattern keeps the harness busy for ever.
"""

from __future__ import annotations

from typing import Any, AnyStr

import re2


class PatternError(ValueError):
    """A text is no regular expression; says why."""


def compiled(pattern: AnyStr, *, dot_matches_newline: bool = False) -> Any:
    """A pattern, ready to be searched for in texts of its own type.

    :raises PatternError: it is not one that RE2 takes: look-around and back references are not.
    """
    options = re2.Options()
    options.log_errors = False
    options.dot_nl = dot_matches_newline
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        told = error.args[0]
        raise PatternError(told.decode(errors="replace") if isinstance(told, bytes) else str(told)) from error
