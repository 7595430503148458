"""cpio archives: what is written comes back, through a reader of our own and through the real cpio."""

from __future__ import annotations

import io
import stat
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from harness.images.cpio import pack, packed
from harness.images.tree import Node, Tree
from tests.programs import needs


def read_newc(archive: bytes) -> dict[str, Node]:
    """Every entry of uncompressed archives in a row, later ones over earlier ones, as Linux reads them."""
    entries: dict[str, Node] = {}
    at = 0
    while at < len(archive):
        if archive[at] == 0:
            at += 4
            continue
        assert archive[at : at + 6] == b"070701"
        assert at % 4 == 0
        field = [int(archive[at + i : at + i + 8], 16) for i in range(6, 110, 8)]
        mode, uid, gid, mtime, size, major, minor, name_size = (field[i] for i in (1, 2, 3, 5, 6, 9, 10, 11))
        assert (uid, gid, mtime) == (0, 0, 0)
        assert archive[at + 110 + name_size - 1] == 0
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = at + (110 + name_size + 3) // 4 * 4
        if name != "TRAILER!!!":
            entries[name] = Node(mode, archive[start : start + size], (major, minor))
        at = start + (size + 3) // 4 * 4
    return entries


def a_tree() -> Tree:
    tree = Tree()
    tree.file("init", b"#!/bin/sh\n", 0o755)
    tree.file("etc/empty", b"")
    tree.symlink("bin", "usr/bin")
    tree.directory("tmp", 0o1777)
    tree.character_device("dev/console", 5, 1, 0o600)
    return tree


def test_round_trip() -> None:
    entries = read_newc(packed(a_tree()))
    assert entries == dict(a_tree().items())
    assert entries["init"] == Node(stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    assert entries["bin"] == Node(stat.S_IFLNK | 0o777, b"usr/bin")
    assert entries["dev/console"] == Node(stat.S_IFCHR | 0o600, b"", (5, 1))
    assert entries["dev"] == Node(stat.S_IFDIR | 0o755)


paths = st.lists(
    st.text("ab-.é", min_size=1, max_size=6).filter(lambda part: set(part) != {"."}), min_size=1, max_size=3
)


@given(st.dictionaries(paths.map("/".join), st.binary(max_size=9), max_size=6))
def test_any_files_come_back(files: dict[str, bytes]) -> None:
    tree = Tree()
    for path, data in files.items():
        tree.file(path, data)
    assert read_newc(packed(tree)) == dict(tree.items())


def test_parents_come_before_children() -> None:
    tree = Tree()
    for path in ("a/b", "a-b/c", "a/b/c", "a.b"):
        tree.file(path, b"") if path.endswith("c") or "." in path else tree.directory(path)
    order = list(read_newc(packed(tree)))
    for path in order:
        parent = path.rpartition("/")[0]
        assert not parent or order.index(parent) < order.index(path)


def test_equal_trees_give_equal_bytes() -> None:
    first, second = Tree(), Tree()
    for tree, names in ((first, "abc"), (second, "cba")):
        for name in names:
            tree.file(f"dir/{name}", name.encode())
    assert packed(first) == packed(second)


def test_archives_follow_one_another() -> None:
    over = Tree()
    over.file("init", b"other")
    whole = packed(a_tree()) + packed(over)
    assert len(packed(a_tree())) % 512 == 0
    assert read_newc(whole)["init"].data == b"other"


@needs("cpio", "test")
def test_the_real_cpio_reads_it() -> None:
    out = io.BytesIO()
    pack(a_tree(), out)

    def cpio(*arguments: str) -> str:
        done = subprocess.run(
            ["cpio", "--quiet", "-i", *arguments], input=out.getvalue(), capture_output=True, check=True
        )
        assert done.stderr == b""
        return done.stdout.decode()

    assert cpio("--list").splitlines() == ["bin", "dev", "dev/console", "etc", "etc/empty", "init", "tmp"]
    listing = {line.split()[-1]: line for line in cpio("--list", "--verbose", "--numeric-uid-gid").splitlines()}
    assert listing["dev/console"].startswith("crw-------") and "5,   1" in listing["dev/console"]
    assert listing["tmp"].startswith("drwxrwxrwt")
    assert "bin -> usr/bin" in listing["usr/bin"]
    assert cpio("--to-stdout", "init") == "#!/bin/sh\n"
