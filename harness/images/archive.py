"""Debian's archive as builders see it: what a recipe's suite has, resolved and fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from harness.deadline import Deadline
from harness.images.apt import Apt, Deb
from harness.images.arch import Arch
from harness.images.manifest import Package
from harness.images.recipe import FromSuite
from harness.progress import Progress


class Archive:
    """The private apt roots of a session, each suite's index read once.

    :param cache: the store's directory.
    """

    def __init__(self, cache: Path, progress: Progress) -> None:
        self._cache = cache
        self._progress = progress
        self._roots: dict[tuple[str, str, bool], Apt] = {}

    def apt(self, recipe: FromSuite, arch: Arch | Literal["source"]) -> Apt:
        """The apt root for a recipe's suite, and an architecture or the sources."""
        key = (recipe.suite, arch, recipe.check_valid_until)
        if key not in self._roots:
            self._roots[key] = Apt(
                self._cache,
                recipe.suite,
                arch,
                check_valid_until=recipe.check_valid_until,
                progress=self._progress,
            )
        return self._roots[key]

    def fetch(
        self,
        recipe: FromSuite,
        arch: Arch,
        packages: Sequence[str],
        deadline: Deadline,
        *,
        only: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> tuple[list[Deb], list[Path]]:
        """Packages with all that they depend on, and their files.

        :param only: shell patterns; what matches none is not fetched.
        :param exclude: shell patterns of what is not fetched either.
        :raises HostError: see :class:`Apt`.
        """
        fetched = self.apt(recipe, arch).fetch(
            packages, lambda deb: _matches(deb, only) and not _matches(deb, exclude), deadline
        )
        return [deb for deb, _ in fetched], [path for _, path in fetched]


def manifest_packages(wanted: Iterable[Deb]) -> list[Package]:
    """Packages as a manifest names them."""
    return [
        Package(name=deb.name, version=deb.version, architecture=deb.architecture, sha256=deb.sha256) for deb in wanted
    ]


def _matches(deb: Deb, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(deb.name, pattern) for pattern in patterns)
