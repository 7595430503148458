"""Compilers that need no installation: a root out of Debian packages, and programs run in it, away from the host.

A root is made by unpacking packages: nothing of them runs on the way, so neither root nor emulation is needed. What
runs in it sees that root, read-only, and one directory of the host's, by ``bubblewrap``: no network, no other file, no
process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildFailed, HostError
from harness.images import debs, tools
from harness.images.arch import ABIS, Arch
from harness.images.recipe import ToolchainRecipe
from harness.images.tree import globs
from harness.progress import Progress

BUILD = Path("/build")
"""Where a build sees its own directory."""

_MERGED = ("bin", "sbin", "lib", "lib64")
_MOUNT_POINTS = ("build", "dev", "proc", "tmp", "usr/src")
# Whoever builds, wherever, whenever: the same input gives the same bytes.
_ENVIRONMENT = {
    "PATH": "/usr/bin:/usr/sbin",
    "HOME": str(BUILD),
    "LC_ALL": "C",
    "SOURCE_DATE_EPOCH": "1",
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "harness",
    "KBUILD_BUILD_HOST": "harness",
}
_TAIL_LINES = 20
_FAULTS = (
    re.compile(r"(?P<where>[^\s:]+:\d+)(?::\d+)?: (?:fatal )?error: (?P<what>.*)"),
    re.compile(r"ERROR: modpost: (?P<what>.*)"),
    re.compile(r"(?P<where>[^\s:]+:\d+)?:? ?(?P<what>undefined reference to .*)"),
    re.compile(r"(?P<what>\S+: error while loading shared libraries: .*)"),
    re.compile(r"(?P<where>[^\s:]+:\d+): (?P<what>\*\*\* .*)"),
    re.compile(r"make(?:\[\d+\])?: (?P<what>\*\*\* .*)"),
)
"""What the first error of a build looks like, the most telling first: compiler, modpost, linker, make."""


def make_root(recipe: ToolchainRecipe, packages: Sequence[Path], root: Path, deadline: Deadline) -> None:
    """Unpack packages into an empty directory, and do what their installation would have done."""
    (root / "usr").mkdir(parents=True)
    for name in _MERGED:
        (root / "usr" / name).mkdir()
        (root / name).symlink_to(f"usr/{name}")
    debs.extract(packages, root, deadline)
    for link, target in recipe.links.items():
        (root / link).unlink(missing_ok=True)
        (root / link).symlink_to(target)
    for name in _MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    drop = globs(recipe.trim)
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_dir() and drop.match(str(path.relative_to(root))):
            path.unlink()


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A root with the compiler for one architecture.

    :param root: the directory; nothing writes to it.
    :param target: what the compiler compiles for.
    """

    root: Path
    target: Arch
    progress: Progress

    @property
    def prefix(self) -> str:
        """What the names of its compiler and binutils begin with."""
        return f"{ABIS[self.target].multiarch}-"

    def run(
        self,
        argv: Sequence[str | Path],
        build: Path,
        deadline: Deadline,
        *,
        inputs: Mapping[str, Path] | None = None,
        cwd: Path = BUILD,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> str:
        """Run a program of the root; raises as :func:`harness.images.tools.run`.

        :param build: the one directory that it can write to; it sees it as :data:`BUILD`.
        :param inputs: more directories that it can read, by where it sees them; there must be such a place in the root.
        :param cwd: where it starts.
        :return: what it wrote to standard output and standard error.
        """
        seen = [option for path, source in (inputs or {}).items() for option in ("--ro-bind", source, path)]
        environment = {**_ENVIRONMENT, **(env or {})}
        return tools.run(
            [
                *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
                *(option for name, value in environment.items() for option in ("--setenv", name, value)),
                *("--ro-bind", self.root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108
                *("--bind", build, BUILD, *seen, "--chdir", cwd, "--", *argv),
            ],
            hint="does this host let users make namespaces? See: sysctl kernel.unprivileged_userns_clone",
            deadline=deadline,
            on_line=on_line,
            merge=True,
        )

    def make(
        self,
        arguments: Sequence[str | Path],
        build: Path,
        deadline: Deadline,
        *,
        what: str,
        inputs: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run make, with a job for each processor.

        :param what: is built, for the error.
        :raises BuildFailed: with the compiler's first error.
        """
        lines: list[str] = []
        steps = 0

        def hear(line: str) -> None:
            nonlocal steps
            lines.append(line)
            if re.match(r" {2}[A-Z]", line):  # "  CC      drivers/xen/privcmd.o"
                steps += 1
                self.progress.update(steps, None, "steps")

        jobs = len(os.sched_getaffinity(0))
        try:
            self.run(
                ["make", f"-j{jobs}", f"CROSS_COMPILE={self.prefix}", *arguments],
                build,
                deadline,
                inputs=inputs,
                env=env,
                on_line=hear,
            )
        except HostError as error:
            raise build_failed(what, lines) or error from error


def build_failed(what: str, lines: Sequence[str]) -> BuildFailed | None:
    """The error for a build that failed, from what it printed; None when that shows no error of the build's."""
    for pattern in _FAULTS:
        for line in lines:
            if match := pattern.search(line):
                where = match.groupdict().get("where")
                place = f"{where.removeprefix(f'{BUILD}/')}: " if where else ""
                return BuildFailed(
                    f"{what} does not build: {place}{match['what']}",
                    hint="the build's last lines are above" if len(lines) > 1 else None,
                    tail=lines[-_TAIL_LINES:],
                    output=lines,
                )
    return None
