"""What a process makes once; a fork of it makes its own, since an agent that stays closes the files that it had."""

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
