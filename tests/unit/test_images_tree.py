"""File trees in memory: what archives may put into them, and what is trimmed."""

from __future__ import annotations

import io
import stat
import tarfile

import pytest

from harness.errors import HostError
from harness.images.tree import Tree, globs


def tar(*members: tuple[str, bytes | None, dict[str, object]]) -> io.BytesIO:
    """A tar archive of (name, data, TarInfo fields)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data or b""))
    out.seek(0)
    return out


DIRECTORY = {"type": tarfile.DIRTYPE, "mode": 0o755}


def test_a_package_is_unpacked() -> None:
    tree = Tree()
    tree.unpack(
        tar(
            ("./", None, DIRECTORY),
            ("./usr/bin/tool", b"elf", {"mode": 0o755}),
            ("./usr/bin/alias", None, {"type": tarfile.SYMTYPE, "linkname": "tool"}),
            ("./usr/bin/twin", None, {"type": tarfile.LNKTYPE, "linkname": "./usr/bin/tool"}),
        )
    )
    assert list(dict(tree.items())) == ["usr", "usr/bin", "usr/bin/alias", "usr/bin/tool", "usr/bin/twin"]
    assert tree["usr/bin/twin"] == tree["usr/bin/tool"]
    assert tree["usr/bin/tool"].mode == stat.S_IFREG | 0o755


def test_old_and_merged_paths_are_the_same() -> None:
    tree = Tree(merged=True)
    tree.unpack(tar(("./lib", None, DIRECTORY), ("./lib/x/libc.so", b"1", {}), ("./sbin/init", b"2", {})))
    assert tree["lib"].data == b"usr/lib"
    assert "usr/lib/x/libc.so" in tree
    assert "usr/sbin/init" in tree


@pytest.mark.parametrize("name", ["../etc/passwd", "./usr/../../etc/passwd"])
def test_no_path_leads_out(name: str) -> None:
    with pytest.raises(HostError, match="leads out"):
        Tree().unpack(tar((name, b"", {})))


def test_only_files_directories_and_links() -> None:
    with pytest.raises(HostError, match="neither a file"):
        Tree().unpack(tar(("dev/sda", None, {"type": tarfile.BLKTYPE})))


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(HostError, match="cannot be read"):
        Tree().unpack(io.BytesIO(b"no archive" * 100))


def test_trimming_takes_empty_directories_too() -> None:
    tree = Tree()
    for path in ("usr/share/doc/a/copyright", "usr/lib/x/gconv/a.so", "usr/lib/x/libc.so"):
        tree.file(path, b"")
    tree.symlink("lib", "usr/lib")
    tree.trim(globs(["usr/share/*", "*/gconv/*"]))
    assert [path for path, _ in tree.items()] == ["lib", "usr", "usr/lib", "usr/lib/x", "usr/lib/x/libc.so"]


def test_no_patterns_match_nothing() -> None:
    assert not globs([]).match("")


def test_what_is_dropped_is_not_even_read() -> None:
    tree = Tree()
    tree.unpack(tar(("usr/share/x", b"1", {}), ("usr/bin/x", b"2", {})), globs(["usr/share/*"]))
    assert "usr/share/x" not in tree
    assert "usr/bin/x" in tree


def test_a_path_is_found_where_merged_directories_have_put_it() -> None:
    tree = Tree(merged=True)
    tree.file("bin/setpriv", b"elf")
    assert "bin/setpriv" in tree
    assert "usr/bin/setpriv" in tree
    assert "bin/other" not in tree
    assert tree["bin/setpriv"].data == b"elf"
