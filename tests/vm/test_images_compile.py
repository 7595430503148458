"""Code really compiled: against the headers of a real kernel, away from the host, from patches and trees of the user's.

It uses the store that scenarios use: the first run fetches a compiler, later ones take seconds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import BuildFailed
from harness.images import Images, Kernel, Recipes, Store
from harness.images.arch import host_arch
from harness.images.archive import Archive
from harness.images.modules import build_id
from harness.images.toolchain import Toolchain
from harness.images.under_test import Candidate, Override, arch_of, parse_overrides
from harness.images.workshop import Workshop
from harness.machine.profiles import load_profiles
from harness.progress import SilentProgress
from tests.vm.conftest import only_all

pytestmark = pytest.mark.vm

MODULE = "virtio_balloon"
SOURCE = f"drivers/virtio/{MODULE}.c"
ARCH = host_arch()
MUTANT = Path(__file__).parents[2] / "mutants" / MODULE / "actual-off.patch"
WRONG = f"--- a/{SOURCE}\n+++ b/{SOURCE}\n@@ -1,1 +1,1 @@\n-nothing like it\n+other\n"


@pytest.fixture(scope="module")
def store() -> Store:
    return Store()


@pytest.fixture(scope="module")
def images(store: Store) -> Images:
    return Images(Recipes(), store, SilentProgress())


@pytest.fixture(scope="module")
def kernel(images: Images) -> Kernel:
    return images.kernel("trixie", ARCH)


@pytest.fixture(scope="module")
def workshop(store: Store) -> Workshop:
    return Workshop(Recipes(), store, Archive(store.root, SilentProgress()), SilentProgress())


@pytest.fixture
def toolchain(workshop: Workshop) -> Toolchain:
    return workshop.toolchain("trixie", ARCH)[0]


def under_test(*sources: Path) -> Override:
    return parse_overrides([f"{MODULE}={source}" for source in sources], [MODULE])[MODULE]


def test_a_build_sees_nothing_of_the_host(toolchain: Toolchain, tmp_path: Path) -> None:
    def run(*argv: str) -> str:
        return toolchain.run(argv, tmp_path, Deadline.after(60, "a command"))

    assert run("find", "/home", "/root", "/tmp", "/build", "-type", "f") == ""
    assert [line.split(":")[0].strip() for line in run("cat", "/proc/net/dev").splitlines()[2:]] == ["lo"]
    assert len([name for name in run("ls", "/proc").split() if name.isdecimal()]) <= 2
    assert run("bash", "-c", "touch /usr/x /build/y 2>&1 || true").strip().endswith("Read-only file system")
    assert (tmp_path / "y").exists()
    assert run("bash", "-c", "echo $HOME $PATH").split() == ["/build", "/usr/bin:/usr/sbin"]


def test_a_module_from_source_fits_the_kernel(images: Images, kernel: Kernel, tmp_path: Path) -> None:
    patch = tmp_path / "comment.patch"
    patch.write_text(MUTANT.read_text())
    tested = images.tested_module(under_test(patch), kernel)
    assert tested.version.split()[0] == kernel.release
    assert len(build_id(tested.path.read_bytes())) == 40
    again = images.tested_module(under_test(patch), kernel)
    assert again.path == tested.path
    assert images.tested_module(under_test(tested.path), kernel).sha256 == tested.sha256


def test_a_patch_that_fits_only_with_fuzz_is_told_of(images: Images, kernel: Kernel, tmp_path: Path) -> None:
    """Also when what was built of it comes out of the store, for the same patch under another name."""
    text = MUTANT.read_text()
    first, context, rest = text.partition("\n static void update_balloon_size(")
    assert context
    for name in ("mine.patch", "yours.patch"):
        patch = tmp_path / name
        patch.write_text(f"{first}\n void update_the_size({rest}")
        (told,) = images.tested_module(under_test(patch), kernel).inexact
        assert told.startswith(f"{patch}: {SOURCE}, hunk 1 fits only with fuzz 2, at line ")
    exact = tmp_path / "exact.patch"
    exact.write_text(text)
    assert images.tested_module(under_test(exact), kernel).inexact == ()


def test_a_tree_is_built_again_exactly_when_its_content_changes(
    images: Images, kernel: Kernel, workshop: Workshop, tmp_path: Path
) -> None:
    source = workshop._kernel_source(kernel, [SOURCE]).path(SOURCE)
    tree = tmp_path / "linux"
    (tree / SOURCE).parent.mkdir(parents=True)
    shutil.copyfile(source, tree / SOURCE)
    first = images.tested_module(under_test(tree), kernel)
    os.utime(tree / SOURCE, (1, 1))
    assert images.tested_module(under_test(tree), kernel).sha256 == first.sha256
    text = (tree / SOURCE).read_text()
    (tree / SOURCE).write_text(text.replace("u32 actual = vb->num_pages;", "u32 actual = vb->num_pages + 1;"))
    os.utime(tree / SOURCE, (1, 1))
    assert images.tested_module(under_test(tree), kernel).sha256 != first.sha256


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ([WRONG], rf"0\.patch does not apply: {SOURCE}, hunk 1 at line 1"),
        ([MUTANT.read_text(), MUTANT.read_text()], r"1\.patch does not apply"),
        (
            [MUTANT.read_text().replace("- 256 : 0;", "- 256 : nosuch;")],
            rf"module {MODULE} does not build: {SOURCE}:\d+: 'nosuch' undeclared",
        ),
    ],
)
def test_what_does_not_build_says_why(
    images: Images, kernel: Kernel, tmp_path: Path, patches: Sequence[str], message: str
) -> None:
    sources = [tmp_path / f"{number}.patch" for number in range(len(patches))]
    for source, patch in zip(sources, patches, strict=True):
        source.write_text(patch)
    with pytest.raises(BuildFailed, match=message):
        images.tested_module(under_test(*sources), kernel)


@only_all
@pytest.mark.parametrize(
    ("machine", "mutant"),
    [
        ("pc", "balloon-refuses-isolation"),
        ("virt", "balloon-refuses-isolation"),
        ("pseries", "tce-old-entry-lost"),
    ],
)
def test_a_small_kernel_from_patches(images: Images, tmp_path: Path, machine: str, mutant: str) -> None:
    """It takes minutes where none was built yet, and seconds for each patch then; a wrong one is told by its place."""
    profile = load_profiles(Recipes().root / "machines")[machine]
    stock = images.kernel(profile.kernels[0], profile.arch)

    def built(patch: Path) -> Candidate:
        override = parse_overrides([f"kernel={patch}"], ["kernel"])["kernel"]
        return images.tested_kernel(override, stock, profile.small_kernel)

    patches = MUTANT.parents[1] / "kernel"
    made = built(patches / f"{mutant}.patch")
    assert made.version.endswith("-small")
    assert arch_of(made.path.read_bytes()) == profile.arch
    assert built(patches / "balloon-loses-page.patch").sha256 != made.sha256
    wrong = tmp_path / "wrong.patch"
    text = (patches / f"{mutant}.patch").read_text()
    wrong.write_text(text.replace("return false;", "return nosuch;").replace("DMA_NONE;", "nosuch;"))
    with pytest.raises(BuildFailed, match=r"the kernel does not build: \S+\.c:\d+: .nosuch. undeclared"):
        built(wrong)
