"""apt's words, read; its configuration, written; and an archive that nobody signed, refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import apt, mirror
from harness.progress import PlainProgress, SilentProgress

SOURCES = """\
'http://mirror.example/debian/pool/main/x/xen/xen_4.20.4%2b63-g7abfd2bce2-0%2bdeb13u1.dsc' \
xen_4.20.4+63-g7abfd2bce2-0+deb13u1.dsc 4054 \
SHA256:20ee94272da311e2dd64cf1e8dd1c86f683d0bc3ba3efde1fd1de2db16e64902
'http://mirror.example/debian/pool/main/x/xen/xen_4.20.4%2b63-g7abfd2bce2.orig.tar.xz' \
xen_4.20.4+63-g7abfd2bce2.orig.tar.xz 4964620 \
SHA256:5142c1e5f9b952953caef4f732bbaef97097ac3ba736c600ab56ee2e512e42dc
'http://mirror.example/debian/pool/main/x/xen/xen_4.20.4%2b63-g7abfd2bce2-0%2bdeb13u1.debian.tar.xz' \
xen_4.20.4+63-g7abfd2bce2-0+deb13u1.debian.tar.xz 139888 \
SHA256:d9c2167118be26833743d799df708bf0863c21433a45157c402ab21114d86570
"""


def soon() -> Deadline:
    return Deadline.after(60, "apt in a test")


PRINTED = """\
'http://mirror.example/debian/pool/main/b/busybox/busybox-static_1.37.0-6%2bb9_amd64.deb' \
busybox-static_1%3a1.37.0-6+b9_amd64.deb 955316 \
SHA256:598a3fd92bdafc34cd81196b2952ad36e910e47a4ecf162f8ce5e8e262598e53
'http://mirror.example/debian/pool/main/t/tzdata/tzdata_2026c-0%2bdeb13u1_all.deb' \
tzdata_2026c-0+deb13u1_all.deb 264156 \
SHA256:57b7a59698976d6c0e7e769a049eb3fe57b7a59698976d6c0e7e769a049eb3fe
"""

TARGETS = """\
http://mirror.example/debian-security/\tDebian\tDebian-Security\tbookworm-security
http://mirror.example/debian/\tDebian\tDebian\tbookworm-updates
cdrom://disc/\tDebian\tDebian\tbookworm
https://vendor.example/apt/\tVendor\tVendor\tbookworm
http://mirror.example/debian/\tDebian\tDebian\tbookworm
http://mirror.example/debian/\tDebian\tDebian\tbookworm
"""

URIS = """\
'https://vendor.example/linux/dists/stable/main/binary-amd64/Packages.xz' vendor 0 
'http://mirror.example/debian/dists/bookworm/InRelease' mirror 0 
'http://mirror.example/debian/dists/bookworm-updates/main/binary-amd64/Packages.xz' mirror 0 
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' mirror 0 
'http://mirror.example/debian/dists/bookworm/main/binary-all/Packages.xz' mirror 0 
"""  # noqa: W291 - apt ends its lines so

HOST = """\
Acquire "";
Acquire::AllowInsecureRepositories "1";
Acquire::Check-Valid-Until "false";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::CaInfo "/etc/ssl/own.pem";
Acquire::http::Timeout "7";
Acquire::Retries "9";
APT::Update::Post-Invoke:: "rm -rf /";
DPkg::Pre-Install-Pkgs:: "/usr/sbin/hook";
"""


def test_printed_uris() -> None:
    busybox, tzdata = apt.parse_uris(PRINTED)
    assert (busybox.name, busybox.version, busybox.architecture) == ("busybox-static", "1:1.37.0-6+b9", "amd64")
    assert busybox.file == "busybox-static_1%3a1.37.0-6+b9_amd64.deb"
    assert (busybox.size, busybox.sha256[:4]) == (955316, "598a")
    assert (tzdata.name, tzdata.version, tzdata.architecture) == ("tzdata", "2026c-0+deb13u1", "all")


def test_the_main_archive_is_found_among_targets() -> None:
    assert mirror.mirrors_of_targets(TARGETS) == ["http://mirror.example/debian/"]
    assert mirror.mirrors_of_targets("") == []


def test_the_main_archive_is_found_among_uris() -> None:
    assert mirror.mirrors_of_uris(URIS) == ["http://mirror.example/debian/", "https://vendor.example/linux/"]


def test_the_host_gives_its_transport_and_nothing_else() -> None:
    text = apt.configuration(Path("/cache/apt/trixie-arm64"), "arm64", HOST.splitlines())
    lines = text.splitlines()
    assert 'Acquire::http::Proxy "http://proxy.example:3128";' in lines
    assert 'Acquire::https::CaInfo "/etc/ssl/own.pem";' in lines
    assert lines.index('Acquire::http::Timeout "30";') < lines.index('Acquire::http::Timeout "7";')
    assert 'APT::Architecture "arm64";' in lines
    assert 'Dir::Etc::parts "/dev/null";' in lines
    for word in ("Insecure", "Valid-Until", "Invoke", "Pre-Install", "Trusted"):
        assert word not in text


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("E: Failed to fetch http://m.example/InRelease  Could not resolve 'm.example'", "network"),
        ("E: The repository 'http://m.example trixie InRelease' is not signed.", "debian-archive-keyring"),
        ("W: GPG error: x: The following signatures were invalid: EXPKEYSIG 6ED0", "debian-archive-keyring"),
        ("E: Release file for x is expired (invalid since 14d 20h). Updates will not be applied.", "clock"),
        ("E: Release file for x is not valid yet (invalid for another 2h).", "clock"),
        ("E: The repository 'x nosuch Release' does not have a Release file.", "mirror does not carry"),
        ("E: Failed to fetch x  Hash Sum mismatch", "try again"),
        ("E: Failed to fetch x  File has unexpected size (1 != 2). Mirror sync in progress?", "try again"),
    ],
)
def test_known_failures_have_a_remedy(line: str, word: str) -> None:
    error = apt.explained(HostError("apt-get failed with status 100: E: other", hint="?", tail=["W: x", line]))
    assert word in str(error.hint)
    assert error.message == f"apt-get: {line[3:]}"


def test_an_unknown_failure_stays_as_it_is() -> None:
    error = HostError("apt-get failed with status 100", hint="see", tail=["E: odd"])
    assert apt.explained(error) is error


def test_a_mirror_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DEBIAN_MIRROR", "https://mirror.example/debian")
    assert mirror.mirror(soon()) == "https://mirror.example/debian"
    for wrong in ("mirror", "https://mirror.example/debian trixie main", "[trusted=yes] https://mirror.example/"):
        monkeypatch.setenv("HARNESS_DEBIAN_MIRROR", wrong)
        with pytest.raises(HostError, match="HARNESS_DEBIAN_MIRROR is no address"):
            mirror.mirror(soon())


def test_a_host_without_an_archive_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_DEBIAN_MIRROR", raising=False)
    monkeypatch.setattr("harness.images.tools.run", lambda *_, **__: "")
    with pytest.raises(HostError, match="knows no Debian archive") as caught:
        mirror.mirror(soon())
    assert "HARNESS_DEBIAN_MIRROR" in str(caught.value.hint)


def test_lists_that_were_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_DEBIAN_MIRROR", raising=False)
    monkeypatch.setattr("harness.images.tools.run", lambda argv, **_: URIS if "update" in argv else "")
    assert mirror.mirror(soon()) == "http://mirror.example/debian/"


needs_apt = pytest.mark.skipif(
    not shutil.which("apt-get") or not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists(),
    reason="needs apt and debian-archive-keyring",
)


@needs_apt
def test_an_archive_that_nobody_signed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tmp_path / "archive" / "dists" / "trixie"
    (suite / "main/binary-amd64").mkdir(parents=True)
    (suite / "main/binary-amd64/Packages").touch()
    (suite / "Release").write_text(
        "Origin: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 12 Sep 2026 07:55:41 UTC\n"
    )
    monkeypatch.setenv("HARNESS_DEBIAN_MIRROR", f"file:{tmp_path}/archive")
    root = apt.Apt(tmp_path / "cache", "trixie", "amd64", check_valid_until=True, progress=SilentProgress())
    with pytest.raises(HostError) as caught:
        root.resolve(["busybox-static"], soon())
    assert "is not signed" in caught.value.explain()
    assert "do not trust this mirror" in str(caught.value.hint)


STALE = HostError("apt-get failed", hint="", tail=["E: Failed to fetch x  File has unexpected size (1 != 2)."])


@pytest.mark.parametrize(
    ("codenames", "asked"),
    [
        ({"stable": "trixie"}, ["trixie", "stable"]),
        ({"stable": "forky", "oldstable": "trixie"}, ["trixie", "stable", "oldstable"]),
    ],
)
@needs_apt
def test_a_mirror_in_the_midst_of_an_update(
    codenames: dict[str, str], asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One name of a suite is inconsistent; another, of the same suite by its signed codename, is whole."""
    monkeypatch.setenv("HARNESS_DEBIAN_MIRROR", "https://mirror.example/debian")
    tried: list[str] = []
    sources = tmp_path / "apt/trixie-amd64/sources.list"

    def apt_get(argv: list[str], **_: object) -> str:
        suite = sources.read_text().split()[-2] if sources.exists() else ""
        if "update" in argv:
            tried.append(suite)
            if suite not in codenames:
                raise STALE
        return {"indextargets": codenames.get(suite, ""), "install": PRINTED}.get(argv[1], "")

    monkeypatch.setattr("harness.images.tools.run", apt_get)
    log = io.StringIO()
    root = apt.Apt(tmp_path, "trixie", "amd64", check_valid_until=True, progress=PlainProgress(log, every_s=0))
    assert root.resolve(["busybox-static"], soon())
    assert tried == asked
    assert f"by its name {asked[-1]}" in log.getvalue()


@needs_apt
def test_a_mirror_that_is_whole_under_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DEBIAN_MIRROR", "https://mirror.example/debian")

    def apt_get(argv: list[str], **_: object) -> str:
        if "update" in argv:
            raise STALE
        return ""

    monkeypatch.setattr("harness.images.tools.run", apt_get)
    root = apt.Apt(tmp_path, "trixie", "amd64", check_valid_until=True, progress=SilentProgress())
    with pytest.raises(HostError, match="unexpected size") as caught:
        root.resolve(["busybox-static"], soon())
    assert "being updated" in str(caught.value.hint)


def a_deb(content: bytes) -> apt.Deb:
    from hashlib import sha256

    return apt.Deb("tool", "1", "all", "tool_1_all.deb", len(content), sha256(content).hexdigest())


def test_a_package_is_fetched_once_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    file = tmp_path / "debs" / "tool_1_all.deb"
    served = b"good"

    def fetch(argv: list[str], **options: object) -> str:
        fetched.append(argv[-1])
        report = options["on_line"]
        assert callable(report)
        report("dlstatus:1:50.0000:Retrieving file 1 of 1")
        file.write_bytes(served)
        return ""

    monkeypatch.setattr("harness.images.tools.run", fetch)
    log = io.StringIO()
    root = apt.Apt(tmp_path, "trixie", "amd64", check_valid_until=True, progress=PlainProgress(log, every_s=0))
    assert root.download([a_deb(b"good")], soon()) == [file]
    assert root.download([a_deb(b"good")], soon()) == [file]
    assert fetched == ["tool=1"]
    assert "2 bytes of 4 bytes" in log.getvalue()

    file.write_bytes(b"baad")
    root.download([a_deb(b"good")], soon())
    assert fetched == ["tool=1", "tool=1"]

    served = b"evil"
    file.unlink()
    with pytest.raises(HostError, match="not what the archive's index says"):
        root.download([a_deb(b"good")], soon())
    assert not file.exists()


def test_the_archives_of_a_source_package() -> None:
    files = apt.parse_sources(SOURCES)
    assert [(file.name, file.version, file.size) for file in files] == [
        ("xen", "4.20.4+63-g7abfd2bce2", 4964620),
        ("xen", "4.20.4+63-g7abfd2bce2-0+deb13u1", 139888),
    ]
    assert all(file.architecture == "source" for file in files)


def test_a_source_package_of_another_shape_is_refused() -> None:
    with pytest.raises(HostError, match="is not one archive and Debian's changes"):
        apt.parse_sources(SOURCES.replace(".debian.tar.xz", ".diff.gz"))


def test_a_version_that_is_not_there(tmp_path: Path) -> None:
    root = apt.Apt(tmp_path, "trixie", "amd64", check_valid_until=True, progress=SilentProgress())
    said = ["E: Version '6.12.1-1' for 'linux-source-6.12' was not found"]
    error = root._unavailable(HostError("apt-get failed", tail=said), soon())
    assert isinstance(error, apt.NotInArchive)
    assert error.message == "Debian trixie has no linux-source-6.12 6.12.1-1 for amd64"
