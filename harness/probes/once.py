"""Things that a process makes once; one that is forked from it makes its own, for an agent that stays closes its files."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

_made: dict[tuple[int, Any], Any] = {}


def once(make: Callable[[], T]) -> T:
    """What ``make`` gives: made at first use."""
    key = (os.getpid(), make)
    if key not in _made:
        _made[key] = make()
    made: T = _made[key]
    return made
