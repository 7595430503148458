"""Building from source, the parts that need no compiler: what a build's errors say, and what is built again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.errors import BuildFailed, HostError
from harness.images import tools
from harness.images.hypervisor import lost_options
from harness.images.incremental import build_directory, digests, every_file, needs_configuring, synchronise, whole_hash
from harness.images.kernel_source import unpack_headers
from harness.images.patches import apply, inexact_hunks, refusal
from harness.images.recipe import Recipes, ToolchainRecipe
from harness.images.small_kernel import builtin, lost_lines
from harness.images.toolchain import BUILD, build_failed, make_root


def soon() -> Deadline:
    return Deadline.after(30, "a build in a test")


# -- what a build that fails says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [
                "  CC [M]  /build/drivers/virtio/virtio_balloon.o",
                "/build/drivers/virtio/virtio_balloon.c:31:7: warning: unused variable 'y'",
                "/build/drivers/virtio/virtio_balloon.c:537:71: error: 'nosuch' undeclared",
                "/build/drivers/virtio/virtio_balloon.c:538:1: error: another",
                "make[2]: *** [scripts/Makefile.build:234: virtio_balloon.o] Error 1",
            ],
            "drivers/virtio/virtio_balloon.c:537: 'nosuch' undeclared",
        ),
        (
            ["privcmd.c:3:10: fatal error: nowhere.h: No such file or directory", "compilation terminated."],
            "privcmd.c:3: nowhere.h: No such file or directory",
        ),
        (
            ['ERROR: modpost: "vfio_nothing" [/build/x.ko] undefined!', "make: *** [Makefile:1: all] Error 2"],
            '"vfio_nothing" [/build/x.ko] undefined!',
        ),
        (["Makefile:7: *** missing separator.  Stop."], "Makefile:7: *** missing separator.  Stop."),
        (["make: *** No rule to make target 'modules'.  Stop."], "*** No rule to make target 'modules'.  Stop."),
    ],
)
def test_the_first_error_is_told(lines: list[str], message: str) -> None:
    error = build_failed("module x", lines)
    assert isinstance(error, BuildFailed)
    assert error.message == f"module x does not build: {message}"


def test_what_is_no_error_of_the_build_is_not_taken_for_one() -> None:
    assert build_failed("module x", ["bwrap: setting up uid map: Permission denied"]) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["patching file drivers/x.c", "Hunk #1 succeeded at 3.", "Hunk #2 FAILED at 531."],
            "drivers/x.c, hunk 2 at line 531",
        ),
        (
            [
                "can't find file to patch at input line 4",
                "Perhaps you used the wrong -p or --strip option?",
                "|--- a/mm/balloon_compaction.c",
                "|+++ b/mm/balloon_compaction.c",
                "No file to patch.  Skipping patch.",
            ],
            "there is no mm/balloon_compaction.c",
        ),
        (
            ["patching file 'a b.c'", "Reversed (or previously applied) patch detected!  Skipping patch."],
            "a b.c: it is applied already",
        ),
        (
            ["patch: **** Only garbage was found in the patch input."],
            "patch: **** Only garbage was found in the patch input.",
        ),
    ],
)
def test_a_refused_patch_says_where(lines: list[str], message: str) -> None:
    assert refusal(lines) == message


# -- patches, by the host's own ``patch`` -----------------------------------------------------------------------

SOURCE = "".join(f"line {number}\n" for number in range(1, 31))
CHANGE = """--- a/mm/x.c
+++ b/mm/x.c
@@ -9,7 +9,7 @@
 line 9
 line 10
 line 11
-line 12
+line twelve
 line 13
 line 14
 line 15
"""


class HostTools:
    """Stands for a toolchain: runs programs of the host's, in the build directory."""

    def run(self, argv: Sequence[str], build: Path, deadline: Deadline, *, on_line: Callable[[str], None]) -> str:
        plain = [str(item).replace(str(BUILD), str(build)) for item in argv]
        return tools.run([*plain, "-d", str(build)], hint="", deadline=deadline, on_line=on_line, merge=True)


def applied(tmp_path: Path, source: str, *patches: str) -> tuple[str, tuple[str, ...]]:
    """What a file is with patches applied, and what is told of them."""
    (tmp_path / "mm").mkdir(exist_ok=True)
    (tmp_path / "mm/x.c").write_text(source)
    named = [(Path(f"{number}.patch"), patch.encode()) for number, patch in enumerate(patches)]
    toolchain: Any = HostTools()
    facts = apply(toolchain, named, tmp_path, "Linux 6", soon())
    # found in the store by somebody who has the same patches elsewhere
    return (tmp_path / "mm/x.c").read_text(), inexact_hunks(facts, [Path("/elsewhere") / name for name, _ in named])


def test_a_patch_that_fits_is_not_talked_about(tmp_path: Path) -> None:
    assert applied(tmp_path, SOURCE, CHANGE) == (SOURCE.replace("line 12\n", "line twelve\n"), ())
    moved = "new\n" * 5 + SOURCE
    assert applied(tmp_path, moved, CHANGE) == (moved.replace("line 12\n", "line twelve\n"), ())


def test_a_patch_that_fits_only_with_fuzz_is_told_of(tmp_path: Path) -> None:
    other = SOURCE.replace("line 9\n", "line nine\n")
    text, told = applied(tmp_path, other, CHANGE)
    assert "line twelve" in text
    assert told == ("/elsewhere/0.patch: mm/x.c, hunk 1 fits only with fuzz 1, at line 9",)
    _, told = applied(tmp_path, "new\n" + other.replace("line 10\n", "line ten\n"), CHANGE)
    assert told == (
        "/elsewhere/0.patch: mm/x.c, hunk 1 fits only with fuzz 2, at line 10, 1 line from where it should be",
    )


def test_which_of_several_patches_it_is(tmp_path: Path) -> None:
    second = CHANGE.replace("line 12", "line twelve").replace("+line twelve", "+line XII")
    text, told = applied(tmp_path, SOURCE, CHANGE, second.replace("line 15", "line fifteen"))
    assert "line XII" in text
    assert [line.split(":")[0] for line in told] == ["/elsewhere/1.patch"]


def test_no_fuzz_makes_a_patch_fit_what_it_is_not_for(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"0.patch does not apply: mm/x.c, hunk 1 at line 9"):
        applied(tmp_path, SOURCE.replace("line 12\n", "line XII\n"), CHANGE)


def test_options_that_did_not_take() -> None:
    config = "CONFIG_EXPERT=y\n# CONFIG_DEBUG is not set\nCONFIG_NR_CPUS=16\n"
    assert lost_options({"EXPERT": "y", "DEBUG": "n", "NR_CPUS": "16", "GONE": "n"}, config) == []
    assert lost_options({"EXPERT": "n", "DEBUG": "y", "NR_CPUS": "8"}, config) == ["EXPERT=n", "DEBUG=y", "NR_CPUS=8"]


def test_lines_that_did_not_take() -> None:
    config = "CONFIG_SMP=y\n# CONFIG_NUMA is not set\nCONFIG_NR_CPUS=8\n"
    good = ["CONFIG_SMP=y", "# CONFIG_NUMA is not set", "# CONFIG_GONE is not set", "CONFIG_NR_CPUS=8"]
    assert lost_lines(good, config) == []
    bad = ["CONFIG_NUMA=y", "# CONFIG_SMP is not set", "CONFIG_NR_CPUS=4"]
    assert lost_lines(bad, config) == bad


def test_what_a_small_kernel_has_built_in(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/drivers/x/virtio-rng.ko\nkernel/drivers/xen/xen-evtchn.ko\n")
    assert builtin(tmp_path) == "virtio_rng xen_evtchn"


# -- roots ----------------------------------------------------------------------------------------------------


def test_a_toolchain_root_is_merged_and_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(packages: object, root: Path, deadline: Deadline) -> None:
        (root / "usr/share/doc/make").mkdir(parents=True)
        (root / "usr/share/doc/make/copyright").write_text("text")
        (root / "bin/make").write_text("program")

    monkeypatch.setattr("harness.images.debs.extract", unpack)
    recipe = ToolchainRecipe(
        suite="trixie",
        packages=("make",),
        compilers={"arm64": "gcc"},
        trim=("usr/share/doc/*",),
        links={"usr/bin/awk": "mawk"},
    )
    make_root(recipe, [], tmp_path / "new", soon())
    assert (tmp_path / "new/bin").readlink() == Path("usr/bin")
    assert (tmp_path / "new/usr/bin/awk").readlink() == Path("mawk")
    assert (tmp_path / "new/usr/src").is_dir()
    assert (tmp_path / "new/usr/bin/make").read_text() == "program"
    assert not (tmp_path / "new/usr/share/doc/make/copyright").exists()


def test_headers_are_complete_in_themselves(tmp_path: Path) -> None:
    usr = tmp_path / "headers/usr"
    for name in ("src/linux-headers-6.12-arm64", "src/linux-headers-6.12-common", "lib/linux-kbuild-6.12/scripts"):
        (usr / name).mkdir(parents=True)
    (usr / "src/linux-kbuild-6.12").symlink_to("../lib/linux-kbuild-6.12")
    (usr / "src/linux-headers-6.12-arm64/scripts").symlink_to("../../lib/linux-kbuild-6.12/scripts")
    (usr / "src/linux-headers-6.12-arm64/vmlinux").write_text("types")
    tree = unpack_headers([], tmp_path, soon())
    assert (tree / "linux-headers-6.12-arm64/scripts").resolve() == (tree / "linux-kbuild-6.12/scripts").resolve()
    assert (tree / "linux-kbuild-6.12/scripts").is_dir()
    assert not (tree / "linux-headers-6.12-arm64/vmlinux").exists()


def test_the_recipes_that_build_are_whole() -> None:
    recipes = Recipes()
    for name in recipes.names("modules"):
        build = recipes.module(name).build
        if build is not None:
            compilers = recipes.toolchain(build.toolchain).compilers
            assert set(build.architectures) <= set(compilers)
            assert all(path.startswith("drivers/") for path in build.paths)
    for name in recipes.names("hypervisors"):
        recipe = recipes.hypervisor(name)
        assert set(recipe.architectures) <= set(recipes.toolchain(recipe.toolchain).compilers)


# -- what is built again --------------------------------------------------------------------------------------


def sources(tree: Path, **files: str) -> dict[str, Path]:
    tree.mkdir(exist_ok=True)
    for name, text in files.items():
        (tree / name).write_text(text)
    return {name: tree / name for name in files}


def test_only_what_has_changed_is_written(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with build_directory(work, "x", soon(), lambda: None) as build:
        assert synchronise(sources(tmp_path / "one", a="1", b="2", c="3"), build) == 3
        (build / "a.o").write_text("built")
        kept = (build / "a").stat().st_mtime_ns
    with build_directory(work, "x", soon(), lambda: None) as build:
        assert synchronise(sources(tmp_path / "two", a="1", b="other"), build) == 2
        assert (build / "a").stat().st_mtime_ns == kept
        assert (build / "b").read_text() == "other"
        assert not (build / "c").exists()
        assert (build / "a.o").read_text() == "built"


def test_a_build_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), build_directory(tmp_path, "x", soon(), lambda: None) as build:
        (build / "half.o").write_text("half")
        raise KeyboardInterrupt
    with build_directory(tmp_path, "x", soon(), lambda: None) as build:
        assert list(build.iterdir()) == []


def test_a_build_that_failed_in_order_is_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed), build_directory(tmp_path, "x", soon(), lambda: None) as build:
        (build / "whole.o").write_text("whole")
        raise BuildFailed("a typing error")
    with build_directory(tmp_path, "x", soon(), lambda: None) as build:
        assert (build / "whole.o").exists()


def test_a_configuration_is_made_once(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    assert needs_configuring(config, "a=y")
    config.write_text("CONFIG_A=y")
    assert not needs_configuring(config, "a=y")
    assert needs_configuring(config, "a=n")
    assert not config.exists()


def test_a_tree_is_known_by_its_content(tmp_path: Path) -> None:
    files = sources(tmp_path / "tree", a="1")
    (tmp_path / "tree/link").symlink_to("a")
    files["link"] = tmp_path / "tree/link"
    before = whole_hash(digests(files))
    assert whole_hash(digests(files)) == before
    (tmp_path / "tree/a").chmod(0o755)
    changed = whole_hash(digests(files))
    assert changed != before
    (tmp_path / "tree/link").unlink()
    (tmp_path / "tree/link").symlink_to("b")
    assert whole_hash(digests(files)) != changed


def test_what_builds_leave_in_a_tree_is_no_source(tmp_path: Path) -> None:
    sources(tmp_path / "tree", **{"a.c": "", "a.o": "", ".config": "", ".a.o.cmd": ""})
    assert set(every_file(tmp_path / "tree", soon())) == {"a.c"}


def test_a_broken_repository_is_told(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(HostError, match=r"source tree .*: git failed"):
        every_file(tmp_path, soon())
