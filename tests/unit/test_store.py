"""The image store: built once, whole or not at all, never served damaged, never pruned while in use."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import Entry, Store, pruning
from harness.images.manifest import Package, key_of
from harness.images.store import Built
from harness.progress import SilentProgress


class Log(SilentProgress):
    """Keeps what is said aloud."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def builder(content: bytes = b"content", count: Path | None = None, delay_s: float = 0) -> Callable[..., Built]:
    """Builds one file, and counts itself."""

    def build(directory: Path, deadline: Deadline) -> Built:
        if count is not None:
            with count.open("a") as stream:
                stream.write("x")
        time.sleep(delay_s)
        (directory / "draft").write_bytes(content)
        package = Package(name="tool", version="1", architecture="all", sha256="0" * 64)
        return Built({"file": directory / "draft"}, [package], {"release": "6.12"})

    return build


def get(store: Store, build: Callable[..., Built], progress: SilentProgress | None = None, name: str = "a") -> Entry:
    return store.get_or_build("kernel", name, "amd64", {"n": 1}, build, progress or SilentProgress(), need=["file"])


def never(directory: Path, deadline: Deadline) -> Built:
    raise AssertionError("it is there already")


def objects(store: Store) -> list[Path]:
    return sorted((store.root / "objects").iterdir())


def age(store: Store, entry: Entry, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(store.root / "entries" / f"{entry.key}.json", (then, then))


# -- building -------------------------------------------------------------------------------------------------


def test_what_is_built_is_found_again(tmp_path: Path) -> None:
    entry = get(Store(tmp_path), builder())
    again = get(Store(tmp_path), never)
    assert again.model_dump() == entry.model_dump()
    path = again.path("file")
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert (again.kind, again.name, again.arch, again.facts) == ("kernel", "a", "amd64", {"release": "6.12"})
    assert [package.name for package in again.packages] == ["tool"]
    assert again.files["file"].size == 7
    assert list((tmp_path / "tmp").iterdir()) == []


def test_every_input_makes_another_entry(tmp_path: Path) -> None:
    base: tuple[str, str, str, dict[str, Any]] = ("kernel", "a", "amd64", {"x": {"b": 1, "a": 2}})
    assert key_of(*base) == key_of("kernel", "a", "amd64", {"x": {"a": 2, "b": 1}})
    others = [
        ("rootfs", *base[1:]),
        ("kernel", "b", *base[2:]),
        (*base[:2], "arm64", base[3]),
        (*base[:3], {"x": {"a": 2, "b": 2}}),
    ]
    assert len({key_of(*base), *(key_of(*other) for other in others)}) == 5


def test_the_place_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "here"))
    assert Store().root == tmp_path / "here"
    assert Store().list() == []
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Store().root == tmp_path / "cache" / "harness"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path, deadline: Deadline) -> Built:
        (directory / "half").write_bytes(b"half")
        raise HostError("no network", hint="plug it in")

    store = Store(tmp_path)
    with pytest.raises(HostError, match="no network"):
        get(store, fail)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert objects(store) == []
    assert get(store, builder()).path("file").exists()


# -- several processes ----------------------------------------------------------------------------------------


def _build_at_once(root: Path, count: Path, barrier: Barrier) -> None:
    barrier.wait(30)
    entry = get(Store(root), builder(count=count, delay_s=0.3))
    assert entry.path("file").read_bytes() == b"content"


def test_processes_that_build_at_once_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    count = tmp_path / "count"
    processes = [context.Process(target=_build_at_once, args=(tmp_path / "s", count, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert count.read_text() == "x"


def in_child(work: Callable[[], None]) -> int:
    """Run something in a fork, and give its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def kill_at(name: str, call: int) -> None:
    """Make this process die by SIGKILL at the n-th call of a function of ``os``, before that does anything."""
    real = getattr(os, name)
    calls = 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(os, name, dying)


@pytest.mark.parametrize(
    ("function", "call"), [("fsync", n) for n in range(1, 6)] + [("replace", n) for n in (1, 2, 3)]
)
def test_a_builder_that_is_killed_leaves_nothing_that_looks_whole(tmp_path: Path, function: str, call: int) -> None:
    def build(directory: Path, deadline: Deadline) -> Built:
        (directory / "one").write_bytes(b"1" * 10000)
        (directory / "file").write_bytes(b"2" * 10000)
        return Built({"one": directory / "one", "file": directory / "file"})

    def die() -> None:
        kill_at(function, call)
        get(Store(tmp_path), build)

    status = in_child(die)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    for entry in Store(tmp_path).list():
        assert entry.path("one").stat().st_size == entry.path("file").stat().st_size == 10000

    store = Store(tmp_path)
    entry = get(store, build)
    assert entry.path("file").read_bytes() == b"2" * 10000
    assert list((tmp_path / "tmp").iterdir()) == []
    store.prune()
    assert {path.name for path in objects(store)} == {file.sha256 for file in entry.files.values()}


def test_a_builder_that_is_killed_while_it_builds(tmp_path: Path) -> None:
    def die() -> None:
        def build(directory: Path, deadline: Deadline) -> Built:
            (directory / "half").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        get(Store(tmp_path), build)

    in_child(die)
    left = sorted(path.suffix for path in (tmp_path / "tmp").iterdir())
    assert left == ["", ".lock"]
    get(Store(tmp_path), builder())
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_living_builders_workspace_is_not_swept(tmp_path: Path) -> None:
    def build(directory: Path, deadline: Deadline) -> Built:
        get(Store(tmp_path), builder(), name="other")
        assert directory.is_dir()
        return builder()(directory, deadline)

    assert get(Store(tmp_path), build).path("file").exists()


# -- damage ---------------------------------------------------------------------------------------------------


def damage_content(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"damaged"[: path.stat().st_size])


def damage_size(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"cut")


def damage_name(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [damage_content, damage_size, damage_name])
def test_a_damaged_object_is_built_again_and_said_aloud(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store, log = Store(tmp_path), Log()
    damage(get(store, builder()).path("file"))
    entry = get(store, builder(), log)
    assert entry.path("file").read_bytes() == b"content"
    assert len(log.messages) == 1
    assert log.messages[0].startswith("kernel a for amd64: ")
    assert log.messages[0].endswith("building it again")


def test_a_damaged_object_is_never_served(tmp_path: Path) -> None:
    entry = get(Store(tmp_path), builder())
    damage_content(entry.path("file"))
    with pytest.raises(HostError, match="was damaged"):
        entry.path("file")
    assert objects(Store(tmp_path)) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}'])
def test_a_damaged_manifest_is_no_entry(tmp_path: Path, text: str) -> None:
    store, log = Store(tmp_path), Log()
    entry = get(store, builder())
    (tmp_path / "entries" / f"{entry.key}.json").write_text(text)
    assert store.list() == []
    assert get(store, builder(), log).path("file").exists()
    assert log.messages == ["kernel a for amd64: its manifest was damaged; building it again"]


# -- full disks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_says_where_and_what_to_do(tmp_path: Path, code: int) -> None:
    def build(directory: Path, deadline: Deadline) -> Built:
        raise OSError(code, os.strerror(code))

    with pytest.raises(HostError, match=f"no space left for kernel a for amd64: .* were free in {tmp_path}") as caught:
        get(Store(tmp_path), build)
    assert "harness images prune" in str(caught.value.hint)
    assert "HARNESS_CACHE" in str(caught.value.hint)


FULL_DISK = """
import sys
from pathlib import Path
from harness.errors import HostError
from harness.images import Store
from harness.images.store import Built
from harness.progress import SilentProgress

root = Path(sys.argv[1])

def build(directory, deadline):
    (directory / "file").write_bytes(bytes(8 << 20))
    return Built({"file": directory / "file"})

def ask(build):
    return Store(root).get_or_build("kernel", "a", "amd64", {}, build, SilentProgress(), need=["file"])

try:
    ask(build)
except HostError as error:
    print(error.explain())
print([path.name for path in (root / "tmp").iterdir()])

def small(directory, deadline):
    (directory / "file").write_bytes(b"small")
    return Built({"file": directory / "file"})

print(ask(small).path("file").read_bytes())
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "x", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("this host does not let users mount in a namespace of their own")
    script = f'mount -t tmpfs -o size=1M tmpfs "{tmp_path}" && exec "$@"'
    done = subprocess.run(
        [*unshare, "sh", "-c", script, "sh", sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    error, hint, left, content = done.stdout.splitlines()
    assert error.startswith("no space left for kernel a for amd64: ")
    assert str(tmp_path) in error
    assert "harness images prune" in hint
    assert (left, content) == ("[]", "b'small'")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="Not a directory") as caught:
        get(Store(tmp_path / "file"), builder())
    assert "HARNESS_CACHE" in str(caught.value.hint)


# -- pruning --------------------------------------------------------------------------------------------------


def fill(root: Path, names: str) -> dict[str, Entry]:
    return {name: get(Store(root), builder(name.encode() * 1000), name=name) for name in names}


def test_old_entries_go(tmp_path: Path) -> None:
    entries = fill(tmp_path, "ab")
    age(Store(tmp_path), entries["a"], days=10)
    store = Store(tmp_path)
    assert store.prune(keep_days=30) == 0
    assert store.prune(keep_days=5) > 1000
    assert [entry.name for entry in store.list()] == ["b"]
    assert len(objects(store)) == 1


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    for days, entry in enumerate(fill(tmp_path, "abc").values()):
        age(Store(tmp_path), entry, days)
    store = Store(tmp_path)
    store.prune(max_bytes=store.disk_usage() - 1)
    assert [entry.name for entry in store.list()] == ["a", "b"]
    store.prune(max_bytes=0)
    assert store.list() == []
    assert objects(store) == []


def test_use_makes_an_entry_young(tmp_path: Path) -> None:
    entry = fill(tmp_path, "a")["a"]
    age(Store(tmp_path), entry, days=10)
    get(Store(tmp_path), never)
    assert Store(tmp_path).prune(keep_days=5) == 0


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    user = Store(tmp_path)
    entry = get(user, builder())
    age(user, entry, days=10)
    Store(tmp_path).prune(keep_days=5, max_bytes=0)
    assert entry.path("file").read_bytes() == b"content"
    del user
    Store(tmp_path).prune(keep_days=5)
    assert Store(tmp_path).list() == []


def test_what_is_being_built_stays(tmp_path: Path) -> None:
    def build(directory: Path, deadline: Deadline) -> Built:
        Store(tmp_path).prune(keep_days=0, max_bytes=0)
        return builder()(directory, deadline)

    assert get(Store(tmp_path), build).path("file").exists()


def test_objects_without_an_entry_go(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = get(store, builder())
    (tmp_path / "objects" / ("f" * 64)).write_bytes(b"garbage")
    assert store.prune() == 7
    assert [path.name for path in objects(store)] == [entry.files["file"].sha256]


def test_downloads_go_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "debs").mkdir()
    (tmp_path / "apt" / "trixie-amd64" / "lists").mkdir(parents=True)
    (tmp_path / "apt" / "trixie-amd64.lock").touch()
    (tmp_path / "apt" / "trixie-amd64" / "lists" / "Packages").write_bytes(b"index")
    (tmp_path / "debs" / "old.deb").write_bytes(b"old")
    (tmp_path / "debs" / "new.deb").write_bytes(b"new")
    os.utime(tmp_path / "debs" / "old.deb", (0, 0))
    assert store.prune(keep_days=30) == 3
    assert store.prune(max_bytes=0) == len("newindex")
    assert not (tmp_path / "apt" / "trixie-amd64").exists()


def test_disk_usage_counts_everything(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.disk_usage() == 0
    entry = get(store, builder())
    manifest = tmp_path / "entries" / f"{entry.key}.json"
    assert json.loads(manifest.read_text())["key"] == entry.key
    assert store.disk_usage() == manifest.stat().st_size + 7


# -- directories ----------------------------------------------------------------------------------------------


def tree_builder(content: str = "text") -> Callable[..., Built]:
    def build(directory: Path, deadline: Deadline) -> Built:
        (directory / "root/usr").mkdir(parents=True)
        (directory / "root/usr/file").write_text(content)
        (directory / "root/link").symlink_to("/etc/passwd")
        return Built({}, tree=directory / "root")

    return build


def get_tree(store: Store, build: Callable[..., Built]) -> Entry:
    return store.get_or_build("toolchain", "a", "amd64", {"n": 1}, build, SilentProgress())


def test_a_directory_is_kept_as_it_is(tmp_path: Path) -> None:
    entry = get_tree(Store(tmp_path), tree_builder())
    assert get_tree(Store(tmp_path), never).tree == entry.tree
    assert (entry.tree / "usr/file").read_text() == "text"
    assert entry.tree_bytes == 4  # what a link leads to counts nothing


def test_a_directory_that_is_gone_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    shutil.rmtree(get_tree(store, tree_builder()).tree)
    log = Log()
    entry = Store(tmp_path).get_or_build("toolchain", "a", "amd64", {"n": 1}, tree_builder(), log)
    assert (entry.tree / "usr/file").exists()
    assert "its directory is gone" in log.messages[0]


def test_a_directory_goes_with_its_entry_and_never_while_it_is_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = get_tree(store, tree_builder())
    orphan = tmp_path / "trees" / ("0" * 64)
    orphan.mkdir()
    (orphan / "file").write_text("12345")
    assert Store(tmp_path).prune(keep_days=0) == 5
    assert entry.tree.is_dir()
    tree = entry.tree
    del store, entry
    gc.collect()
    Store(tmp_path).prune(keep_days=0)
    assert not tree.exists()


def test_saved_machines_are_pruned_without_a_look_at_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on one kind is held by that kind alone, those first that were not used for longest."""
    store = Store(tmp_path)
    for number, kind in enumerate(("machine", "machine", "kernel")):
        with store.draft() as directory:
            (directory / "state").write_bytes(bytes([number]) * 1000)
            store.add(
                (kind, "pc", "amd64", {"number": number}), Built({"state": directory / "state"}), directory, seconds=0
            )
    older = next(path for path in (tmp_path / "entries").iterdir() if '"number":0' in path.read_text().replace(" ", ""))
    os.utime(older, (1, 1))
    del store  # while it lives, what it added is in use
    looked: list[Path] = []
    measure = pruning.size_of

    def size_of(path: Path) -> int:
        looked.append(path)
        return measure(path)

    monkeypatch.setattr(pruning, "size_of", size_of)
    assert Store(tmp_path).prune(kind="machine", max_bytes=10_000) == 0
    assert Store(tmp_path).prune(kind="machine", max_bytes=1500) == 1000
    assert tmp_path not in looked
    assert not older.exists()
    assert len(list((tmp_path / "entries").iterdir())) == 2
