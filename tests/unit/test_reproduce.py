"""The machine of an earlier run: what is read of it, and when it cannot be had any more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import strict_yaml
from harness.errors import HarnessError, HostError, ScenarioError, UsageError
from harness.images import Store
from harness.images.store import Built
from harness.images.under_test import Candidate
from harness.progress import SilentProgress
from harness.reproduce import read_earlier
from harness.result import UnderTest, Verdict
from harness.testbed import LoadedModule
from harness.unrun import blank_result
from harness.workspace import Workspace

SCENARIOS = Path(__file__).parents[2] / "scenarios"
PATCH = b"--- a/mm/x.c\n+++ b/mm/x.c\n@@ -1 +1 @@\n-a\n+b\n"
HASHES = {"kernel_sha256": "a" * 64, "rootfs_sha256": "b" * 64}


@dataclass
class Past:
    """A run of balloon/resize[pc] that is over.

    :param directory: its results.
    """

    workspace: Workspace
    directory: Path

    def write(self, *under_test: UnderTest, **changes: Any) -> Path:
        """Its results."""
        scenario = next(item for item in self.workspace.load_file(SCENARIOS / "balloon" / "resize.yaml"))
        text = strict_yaml.dump(dict(scenario.resolved))
        self.directory.mkdir(exist_ok=True)
        (self.directory / "scenario.yaml").write_text(text)
        result = blank_result(scenario, self.directory, "run-1")
        result.verdict, result.reason = Verdict.FAIL, "it fails\nat once"
        result.accel = {"used": "tcg", "why": "asked for"}
        result.versions = {"kernel": "6.12", "module virtio_balloon": "1d", **HASHES}
        told = {**result.to_file(), "under_test": [asdict(item) for item in under_test], **changes}
        (self.directory / "result.json").write_text(json.dumps(told))
        return self.directory

    def kept(self, content: bytes) -> str:
        """Put what was built into the store; gives its hash."""
        store = self.workspace.store
        with store.draft() as draft:
            (draft / "module.ko").write_bytes(content)
            what = ("module", "virtio_balloon", "amd64", {"of": content.hex()})
            store.add(what, Built({"module.ko": draft / "module.ko"}), draft, seconds=1)
        return hashlib.sha256(content).hexdigest()


@pytest.fixture
def past(tmp_path: Path) -> Past:
    workspace = Workspace(SilentProgress())
    workspace.__dict__["store"] = Store(tmp_path / "store")
    workspace.__dict__["images"] = SimpleNamespace(
        kernel=lambda name, arch: SimpleNamespace(name=name, arch=arch), hashes=lambda *_: dict(HASHES)
    )
    return Past(workspace, tmp_path / "balloon-resize[pc]")


def swapped(
    *sources: Path, kind: str = "patches", sha256: str = "c" * 64, component: str = "virtio_balloon"
) -> UnderTest:
    content = b"".join(path.read_bytes() for path in sources if path.is_file())
    return UnderTest(
        component=component,
        kind=kind,
        source=", ".join(path.name for path in sources),
        source_sha256=hashlib.sha256(content).hexdigest() if content else "",
        sha256=sha256,
        describe="",
        version="6.12",
        replaced="Debian's",
        sources=tuple(map(str, sources)),
    )


def test_a_machine_with_nothing_under_test(past: Past) -> None:
    wanted = read_earlier(past.workspace, past.write())
    assert wanted.scenario.id == "balloon/resize[pc]"
    assert wanted.scenario.boot.machine == "pc"
    assert [item.module for item in wanted.scenario.load] == ["virtio_balloon"]
    assert wanted.accel == "tcg"
    assert not wanted.overrides


def test_what_was_built_is_taken_from_the_store_whatever_became_of_its_source(past: Past, tmp_path: Path) -> None:
    sha256 = past.kept(b"\x7fELF built")
    wanted = read_earlier(past.workspace, past.write(swapped(tmp_path / "gone.patch", sha256=sha256)))
    override = wanted.overrides["virtio_balloon"]
    assert (override.kind, override.contents, override.sha256) == ("file", (b"\x7fELF built",), sha256)


def test_what_the_store_has_lost_is_built_again_of_the_same_patches_in_order(past: Past, tmp_path: Path) -> None:
    patches = [tmp_path / "b.patch", tmp_path / "a, c.patch"]
    for number, path in enumerate(patches):
        path.write_bytes(PATCH + b"\n" * number)
    wanted = read_earlier(past.workspace, past.write(swapped(*patches)))
    assert list(wanted.overrides["virtio_balloon"].sources) == patches


def test_the_good_kernel_of_a_mutation_run_is_built_again(past: Past) -> None:
    wanted = read_earlier(past.workspace, past.write(swapped(component="kernel")))
    assert (wanted.overrides["kernel"].kind, wanted.overrides["kernel"].sources) == ("patches", ())


def test_what_is_damaged_in_the_store_is_not_taken(past: Past, tmp_path: Path) -> None:
    sha256 = past.kept(b"\x7fELF built")
    stored = past.workspace.store.root / "objects" / sha256
    stored.chmod(0o600)
    stored.write_bytes(b"\x7fELF BUILT")
    with pytest.raises(UsageError, match="which is gone"):
        read_earlier(past.workspace, past.write(swapped(tmp_path / "gone.patch", sha256=sha256)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda path: path.unlink(), "which is gone", id="gone"),
        pytest.param(lambda path: path.write_bytes(PATCH + b"x"), "which was changed since", id="changed"),
    ],
)
def test_a_source_that_is_not_what_it_was(
    past: Past, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    patch = tmp_path / "fix.patch"
    patch.write_bytes(PATCH)
    directory = past.write(swapped(patch))
    spoil(patch)
    with pytest.raises(UsageError) as error:
        read_earlier(past.workspace, directory)
    assert patch.name in error.value.message
    assert words in error.value.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"schema": 2}, "must be 1, got 2", id="another version"),
        pytest.param({"verdict": "fine"}, "verdict", id="no verdict"),
        pytest.param({"under_test": [{"component": "xen"}]}, "under_test\\[0\\].sha256", id="no hash"),
    ],
)
def test_a_result_of_another_kind(past: Past, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        read_earlier(past.workspace, past.write(**changes))


def test_what_is_no_results_directory(past: Past, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no scenario's results") as error:
        read_earlier(past.workspace, tmp_path / "nowhere")
    assert "harness run says" in str(error.value.hint)
    past.write()
    with pytest.raises(UsageError, match="is no scenario's results") as error:
        read_earlier(past.workspace, tmp_path)
    assert "choose one: balloon-resize[pc]" in str(error.value.hint)


def test_a_run_that_never_had_a_machine(past: Past) -> None:
    with pytest.raises(UsageError, match="before it had a machine") as error:
        read_earlier(past.workspace, past.write(versions={}))
    assert error.value.hint == "it fails"


def test_a_scenario_that_was_changed_since(past: Past) -> None:
    file = past.write() / "scenario.yaml"
    file.write_text(file.read_text() + "\ntimeout_s: 77\n")
    with pytest.raises(UsageError, match="was changed since"):
        read_earlier(past.workspace, past.directory)


def test_a_scenario_that_is_gone(past: Past) -> None:
    (past.write() / "scenario.yaml").unlink()
    with pytest.raises(UsageError, match="is no scenario's results"):
        read_earlier(past.workspace, past.directory)


def test_images_that_are_not_what_they_were(past: Past, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="the rootfs of that run is no longer"):
        read_earlier(past.workspace, past.write(versions={**HASHES, "rootfs_sha256": "e" * 64}))
    moved = {"kernel": "6.12.107", **HASHES, "kernel_sha256": "e" * 64}
    with pytest.raises(HostError, match="the kernel of that run is no longer") as error:
        read_earlier(past.workspace, past.write(versions=moved))
    assert "its kernel was 6.12.107" in str(error.value.hint)
    kernel = swapped(tmp_path / "gone", sha256=past.kept(b"\x7fELF kernel"), component="kernel")
    assert read_earlier(past.workspace, past.write(kernel, versions=moved)).overrides, "another one is booted anyway"


def test_a_machine_that_turned_out_to_be_another(past: Past, tmp_path: Path) -> None:
    tree = tmp_path / "linux"
    tree.mkdir()
    wanted = read_earlier(past.workspace, past.write(swapped(tree, kind="tree")))

    def raised(check: Callable[[], None]) -> str:
        with pytest.raises(HarnessError) as error:
            check()
        return error.value.explain()

    override = wanted.overrides["virtio_balloon"]
    same, other = (Candidate(override, tree, digit * 64, "", "6.12", "Debian's") for digit in "cd")
    wanted.check_tested([same])
    assert "gives something else now" in raised(lambda: wanted.check_tested([other]))
    wanted.check_loaded([LoadedModule("guest", "virtio_balloon", (), "1d"), LoadedModule("guest", "new", (), "7")])
    loaded = [LoadedModule("guest", "virtio_balloon", (), "2e")]
    assert "its build id is 2e, was 1d" in raised(lambda: wanted.check_loaded(loaded))
