"""Debian packages and sources without an installed Debian: resolved, fetched and verified by apt in a root of its own.

A private root has its own lists, its own empty ``dpkg`` status and its own architecture, so nothing on the host changes
and no privilege is needed. Signatures are always verified against Debian's archive keyring.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import tools
from harness.images.arch import Arch, host_arch
from harness.images.locks import held
from harness.images.mirror import MIRROR_VARIABLE, mirror
from harness.progress import BYTES, Progress
from harness.validate import did_you_mean

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_UNAVAILABLE = re.compile(r"Unable to locate package (\S+)|Package '?([^\s']+)'? has no installation candidate")
_NO_VERSION = re.compile(r"Version '([^']+)' for '([^']+)' was not found")
_PRINTED_URI = re.compile(
    r"'[^']+' (?P<file>(?P<name>[^_]+)_(?P<version>[^_]+)_(?P<arch>[^_]+)\.deb) (?P<size>\d+) SHA256:(?P<sha256>\w{64})"
)
_PRINTED_SOURCE = re.compile(
    r"'[^']+' (?P<file>(?P<name>[^_\s]+)_(?P<version>\S+?)\.(?:orig|debian)\.tar\.\w+) (?P<size>\d+)"
    r" SHA256:(?P<sha256>\w{64})"
)
_IN_UPDATE = r"Hash Sum mismatch|has unexpected size|Mirror sync in progress"
#: Other names that an archive has for its suites (``Suite`` in a Release file).
_ALIASES = ("stable", "oldstable", "oldoldstable", "testing", "unstable")
_MISSING = r"404 +Not Found"
_STATUS = re.compile(r"dlstatus:\d+:(?P<percent>[\d.]+):")
_CARRIED = re.compile(r"Acquire::(?:(?:http|https|ftp|tor|socks5h?)(?:::|\s)|Retries|ForceIPv|Queue-Mode|Proxy)")
"""Of the host's own settings, what says how to reach a mirror. What weakens verification is not among them."""

_HINTS = (
    (
        r"Could not resolve|Could not connect|[Cc]onnection (?:timed out|refused|failed)|Temporary failure",
        f"is the network up? A proxy is taken from apt's own settings, a mirror from {MIRROR_VARIABLE}",
    ),
    (
        r"EXPKEYSIG|NO_PUBKEY|BADSIG|is not signed|signatures? (?:couldn't|were|was|could not)|At least one invalid",
        "apt install --only-upgrade debian-archive-keyring; if that is current, do not trust this mirror",
    ),
    (
        r"is expired|not valid (?:yet|anymore)",
        "is the host's clock right? A recipe for a frozen mirror says check_valid_until: false",
    ),
    (
        r"404 +Not Found|does not have a Release file|does no longer have a Release file",
        f"the mirror does not carry this suite or architecture: see the recipe and {MIRROR_VARIABLE}",
    ),
    (_IN_UPDATE, "the mirror is being updated or a proxy serves stale files: try again in some minutes"),
)


@dataclass(frozen=True, slots=True)
class Deb:
    """A package in the archive, or a file of a source package, as apt's verified index describes it.

    A source has the architecture ``source``.

    :param file: its file's name.
    :param size: in bytes.
    :param sha256: of the file, in hexadecimal.
    """

    name: str
    version: str
    architecture: str
    file: str
    size: int
    sha256: str


class NotInArchive(HostError):
    """The archive has no such package, or not in that version."""


class Apt:
    """A private apt root for one suite, and one architecture or the sources.

    :param cache: the directory that roots and downloaded packages live in.
    :param check_valid_until: whether an index past its date is refused.
    """

    def __init__(
        self, cache: Path, suite: str, arch: Arch | Literal["source"], *, check_valid_until: bool, progress: Progress
    ) -> None:
        self._suite = suite
        self._arch = arch
        self._check_valid_until = check_valid_until
        self._progress = progress
        self._root = cache / "apt" / f"{suite}-{arch}"
        self._debs = cache / "debs"
        # apt reads this before the host's configuration, and is told in it to read none; what -c names comes after.
        self._environment = {"APT_CONFIG": str(self._root / "apt.conf")}
        self._updated = False
        for directory in (self._root.parent, self._debs):
            directory.mkdir(parents=True, exist_ok=True)

    def resolve(self, packages: Sequence[str], deadline: Deadline) -> list[Deb]:
        """The packages and all that they depend on, from an index that this object read.

        :raises HostError: no network, an index that cannot be trusted, or a package that the suite does not have.
        """
        return self._listed(["install", "--yes"], packages, deadline)

    def exact(self, packages: Sequence[str], deadline: Deadline) -> list[Deb]:
        """These packages alone, as ``name`` or ``name=version``; raises as :meth:`resolve`."""
        return self._listed(["download"], packages, deadline)

    def fetch_source(self, package: str, deadline: Deadline) -> list[tuple[Deb, Path]]:
        """A source package's archives: what its authors released, then Debian's changes.

        A mirror may list sources that it does not have yet; then those of the suite's other name are taken.

        :raises HostError: no network, an index that cannot be trusted, or a source that the suite does not have.
        """
        with self._read(deadline):
            try:
                return self._fetch_source(package, deadline)
            except HostError as error:
                if not self._by_another_name(error, deadline):
                    raise
                return self._fetch_source(package, deadline)

    def fetch(
        self, packages: Sequence[str], wanted: Callable[[Deb], bool], deadline: Deadline
    ) -> list[tuple[Deb, Path]]:
        """Packages with all that they depend on, and their files.

        A mirror may list packages that it does not have yet; then those of the suite's other name are taken.

        :param wanted: which of them are fetched.
        :raises HostError: see :meth:`resolve` and :meth:`download`.
        """
        debs = [deb for deb in self.resolve(packages, deadline) if wanted(deb)]
        try:
            return list(zip(debs, self.download(debs, deadline), strict=True))
        except HostError as error:
            with self._read(deadline):
                if not self._by_another_name(error, deadline):
                    raise
        debs = [deb for deb in self.resolve(packages, deadline) if wanted(deb)]
        return list(zip(debs, self.download(debs, deadline), strict=True))

    def _by_another_name(self, error: HostError, deadline: Deadline) -> bool:
        """Whether the error is about a file that is listed and not there, and another name has been read instead."""
        if not re.search(_MISSING, "\n".join([error.message, *error.tail])):
            return False
        return any(self._is_whole_as(alias, deadline) for alias in _ALIASES)

    def _fetch_source(self, package: str, deadline: Deadline) -> list[tuple[Deb, Path]]:
        listed = self._get(deadline, "source", "--print-uris", "--only-source", "-qq", "--", package)
        files = parse_sources(listed)
        with held(self._debs / ".lock", deadline):
            if not all(self._intact(file) for file in files):
                self._progress.phase(f"fetching the source of {package}")
                # Not what describes the two: their hashes stand in the signed index, too.
                for part in ("--tar-only", "--diff-only"):
                    self._get(deadline, "source", "--download-only", "--only-source", part, "--", package)
            self._check(files)
        return [(file, self._debs / file.file) for file in files]

    def _listed(self, command: Sequence[str], packages: Sequence[str], deadline: Deadline) -> list[Deb]:
        with self._read(deadline):
            try:
                printed = self._get(deadline, *command, "--print-uris", "-qq", "--", *packages)
            except HostError as error:
                raise self._unavailable(error, deadline) from error
        debs = parse_uris(printed)
        if not debs:
            raise HostError(f"apt resolved {', '.join(packages)} to nothing", hint="a bug in the harness: report it")
        return debs

    @contextmanager
    def _read(self, deadline: Deadline) -> Iterator[None]:
        """Hold the root for the block, its index read once."""
        with held(self._root.with_name(f"{self._root.name}.lock"), deadline):
            if not (self._updated and (self._root / "apt.conf").exists()):
                self._update(deadline)
                self._updated = True
            yield

    def _check(self, debs: Iterable[Deb]) -> None:
        for deb in debs:
            if not self._intact(deb):
                raise HostError(f"{deb.file} is not what the archive's index says", hint="try again; suspect the disk")

    def download(self, debs: Sequence[Deb], deadline: Deadline) -> list[Path]:
        """The packages' files, each compared with its hash in the index; fetched unless they are there already.

        :raises HostError: no network, or a file that is not what the index says.
        """
        with held(self._debs / ".lock", deadline):
            missing = [deb for deb in debs if not self._intact(deb)]
            if missing:
                total = sum(deb.size for deb in missing)
                self._progress.phase(f"fetching {len(missing)} packages for {self._arch}")
                self._get(
                    deadline,
                    "download",
                    "-oAPT::Status-Fd=1",
                    "--",
                    *(f"{deb.name}={deb.version}" for deb in missing),
                    on_line=lambda line: self._report(line, total),
                )
            self._check(missing)
        return [self._debs / deb.file for deb in debs]

    def _update(self, deadline: Deadline) -> None:
        """Read the suite's index. While a mirror is being updated, another name of the suite may still be whole."""
        self._progress.phase(f"reading Debian {self._suite}'s index for {self._arch}")
        try:
            self._read_index(self._suite, deadline)
        except HostError as error:
            if not re.search(_IN_UPDATE, "\n".join([error.message, *error.tail])):
                raise
            if not any(self._is_whole_as(alias, deadline) for alias in _ALIASES):
                raise error from None

    def _is_whole_as(self, alias: str, deadline: Deadline) -> bool:
        """Whether an alias stands for this suite, and its index could be read."""
        try:
            self._read_index(alias, deadline)
        except HostError:
            return False
        listed = tools.run(
            ["apt-get", "indextargets", "--format", "$(CODENAME)"], hint="", deadline=deadline, env=self._environment
        )
        same = set(listed.split()) == {self._suite}
        if same:
            self._progress.message(f"the mirror is being updated: taking {self._suite} by its name {alias}")
        return same

    def _read_index(self, suite: str, deadline: Deadline) -> None:
        self._configure(suite, deadline)
        self._get(deadline, "update", "--error-on=any")

    def _report(self, line: str, total: int) -> None:
        if match := _STATUS.match(line):
            self._progress.update(float(match["percent"]) / 100 * total, total, BYTES)

    def _intact(self, deb: Deb) -> bool:
        """Whether a package's file is there and whole; one that is not whole is removed."""
        path = self._debs / deb.file
        if not path.exists():
            return False
        with path.open("rb") as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == deb.sha256
        if whole:
            os.utime(path)
        else:
            path.unlink()
        return whole

    def _get(self, deadline: Deadline, *arguments: str, on_line: Callable[[str], None] | None = None) -> str:
        # What lies in the directory already is fetched no more, and also not listed.
        fetches = arguments[0] in ("download", "source") and "--print-uris" not in arguments
        try:
            return tools.run(
                ["apt-get", *arguments],
                hint=f"see what it says by hand: APT_CONFIG={self._environment['APT_CONFIG']} apt-get {arguments[0]}",
                deadline=deadline,
                cwd=self._debs if fetches else self._root,
                env=self._environment,
                on_line=on_line,
            )
        except HostError as error:
            raise explained(error) from error

    def _unavailable(self, error: HostError, deadline: Deadline) -> HostError:
        """The same error, with the nearest names when it is about a package that does not exist."""
        said = "\n".join(error.tail)
        if match := _NO_VERSION.search(said):
            return NotInArchive(f"Debian {self._suite} has no {match[2]} {match[1]} for {self._arch}")
        match = _UNAVAILABLE.search(said)
        if match is None:
            return error
        name = match[1] or match[2]
        known = tools.run(["apt-cache", "pkgnames"], hint="", deadline=deadline, env=self._environment)
        return NotInArchive(
            f"Debian {self._suite} has no package {name} for {self._arch}",
            hint=did_you_mean(name, known.split()) or "see the recipe's list of packages",
        )

    def _configure(self, suite: str, deadline: Deadline) -> None:
        """Write the root's configuration, sources and empty status.

        :param suite: the name under which the archive is asked for the suite.
        """
        if not _KEYRING.exists():
            raise HostError(f"{_KEYRING} is missing", hint="apt install debian-archive-keyring")
        for name in ("lists/partial", "archives/partial"):
            (self._root / name).mkdir(parents=True, exist_ok=True)
        (self._root / "status").touch()
        expiry = "" if self._check_valid_until else " check-valid-until=no"
        source = self._arch == "source"
        options = f"{'' if source else f'arch={self._arch} '}signed-by={_KEYRING}{expiry}"
        kind = "deb-src" if source else "deb"
        (self._root / "sources.list").write_text(f"{kind} [{options}] {mirror(deadline)} {suite} main\n")
        host = tools.run(["apt-config", "dump"], hint="is apt's configuration broken?", deadline=deadline)
        (self._root / "apt.conf").write_text(
            configuration(self._root, host_arch() if source else self._arch, host.splitlines())
        )


def configuration(root: Path, arch: str, host: Iterable[str]) -> str:
    """The configuration of a private root.

    :param host: the lines of the host's own ``apt-config dump``.
    """
    settings = {
        "Dir": f"{root}/",
        "Dir::State": f"{root}/",
        "Dir::State::lists": f"{root}/lists/",
        "Dir::State::status": f"{root}/status",
        "Dir::Cache": f"{root}/",
        "Dir::Cache::archives": f"{root}/archives/",
        # Half of what apt caches gains nothing here, and it is 40 MB a root.
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc::sourcelist": f"{root}/sources.list",
        # Everything else that apt would read, the host's hooks above all.
        **{f"Dir::Etc::{name}": "/dev/null" for name in ("main", "parts", "sourceparts", "preferences")},
        **{f"Dir::Etc::{name}": "/dev/null" for name in ("preferencesparts", "trusted", "trustedparts")},
        "Dir::Etc::netrc": "/etc/apt/auth.conf",
        "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d/",
        "Dir::Log": "/dev/null",
        "APT::Architecture": arch,
        "APT::Architectures": arch,
        "APT::Install-Recommends": "false",
        # The unprivileged user that apt fetches as could not enter a user's own cache.
        "APT::Sandbox::User": "root",
        "Acquire::ForceHash": "sha256",
        "Acquire::GzipIndexes": "true",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    own = [f'{name} "{value}";' for name, value in settings.items()]
    return "\n".join([*own, *(line for line in host if _CARRIED.match(line)), ""])


def parse_uris(printed: str) -> list[Deb]:
    """The packages that ``apt-get --print-uris`` lists, with SHA-256."""
    return [
        Deb(
            name=match["name"],
            version=unquote(match["version"]),
            architecture=match["arch"],
            file=match["file"],
            size=int(match["size"]),
            sha256=match["sha256"],
        )
        for match in _PRINTED_URI.finditer(printed)
    ]


def parse_sources(printed: str) -> list[Deb]:
    """The two archives of a source package that ``apt-get source --print-uris`` lists, the authors' first.

    :raises HostError: it is in another format.
    """
    files = [
        Deb(match["name"], match["version"], "source", match["file"], int(match["size"]), match["sha256"])
        for match in _PRINTED_SOURCE.finditer(printed)
    ]
    if sorted(".orig." in file.file for file in files) != [False, True]:
        raise HostError("the source package is not one archive and Debian's changes to it")
    return sorted(files, key=lambda file: ".orig." not in file.file)


def explained(error: HostError) -> HostError:
    """The same failure of apt in its most telling line, with the remedy, where the cause is known."""
    for pattern, hint in _HINTS:
        for line in error.tail:
            if re.search(pattern, line):
                return HostError(f"apt-get: {re.sub(r'^[EW]: ', '', line)}", hint=hint, tail=error.tail)
    return error
