"""Where the harness keeps what outlives a run."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_dir

CACHE_VARIABLE = "HARNESS_CACHE"


def cache_root() -> Path:
    """The directory of everything that can be made again: what :data:`CACHE_VARIABLE` names, else the user's cache."""
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_dir("harness")).absolute()
