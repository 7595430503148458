"""Probes that import others, imported by tests: in a guest they lie side by side."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

PROBES = Path(__file__).parents[2] / "harness" / "probes"


def imported(name: str) -> ModuleType:
    """A probe, with those that it imports."""
    sys.path.insert(0, str(PROBES))
    try:
        return importlib.import_module(f"harness.probes.{name}")
    finally:
        sys.path.remove(str(PROBES))
