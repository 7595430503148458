"""Programs that a test needs and a host may lack."""

from __future__ import annotations

import shutil

import pytest


def needs(program: str, target: str) -> pytest.MarkDecorator:
    """Skip where a program is missing.

    :param target: what ``make`` is to be asked for, to have it installed.
    """
    missing = shutil.which(program) is None
    return pytest.mark.skipif(missing, reason=f"{program} is not installed: `make {target}` installs it")
