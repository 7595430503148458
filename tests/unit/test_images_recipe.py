"""Recipes: the ones that ship are right, and wrong ones say where and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import HostError, ScenarioError
from harness.images import Recipes
from harness.images.arch import ARCHITECTURES
from harness.images.recipe import kernel_inputs, rootfs_inputs

KERNEL = "suite: trixie\narchitectures:\n  amd64: {packages: [linux-image-amd64], format: bzImage}\n"


def test_what_ships_is_right() -> None:
    recipes = Recipes()
    assert {"trixie", "trixie-64k", "bookworm"} <= set(recipes.names("kernels"))
    assert set(recipes.kernel("trixie").architectures) == set(ARCHITECTURES)
    for name in recipes.names("kernels"):
        recipes.kernel(name)
    for name in recipes.names("rootfs"):
        rootfs_inputs(recipes.rootfs(name), recipes)
    for name in recipes.names("modules"):
        assert name == name.replace("-", "_"), "modules go by the kernel's own names"
        recipes.module(name)


def write(root: Path, kind: str, name: str, text: str) -> Recipes:
    (root / kind).mkdir(parents=True, exist_ok=True)
    (root / kind / f"{name}.yaml").write_text(text)
    return Recipes(root)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("suite: trixie\n", "k.yaml:1:1 architectures", "missing key"),
        (KERNEL + "sute: x\n", "k.yaml:4:1 sute", "did you mean suite"),
        (KERNEL.replace("bzImage", "zImage"), "k.yaml:3:50 architectures.amd64.format", "did you mean bzImage"),
        (KERNEL.replace("amd64:", "amd46:"), "k.yaml:3:3 architectures.amd46", "amd46"),
        (KERNEL.replace("[linux-image-amd64]", "[]"), "k.yaml:3:11 architectures.amd64.packages", "at least 1 item"),
        (KERNEL.replace("[linux-image-amd64]", "[-oX=y]"), "architectures.amd64.packages[0]", "must be text that"),
        (KERNEL.replace("trixie", "../x"), "k.yaml:1:8 suite", "must be text that matches"),
        (KERNEL + "check_valid_until: no\n", "k.yaml:4:20 check_valid_until", "boolean to some YAML readers"),
    ],
)
def test_a_wrong_kernel_says_where(tmp_path: Path, text: str, where: str, what: str) -> None:
    recipes = write(tmp_path, "kernels", "k", text)
    with pytest.raises(ScenarioError) as caught:
        recipes.kernel("k")
    told = str(caught.value).replace('"', "")
    assert where in told
    assert what in told


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ('{init: {source: init, mode: "755"}}', "files.init.mode: must be text that matches ^0[0-7]{3}$"),
        ("{init: {source: ../secret}}", "files.init.source: must be text that matches"),
        ("{../init: {source: init}}", "a path must not contain . or .."),
        ("{/init: {source: init}}", 'files."/init": the key must match'),
    ],
)
def test_a_wrong_file_says_so(tmp_path: Path, files: str, what: str) -> None:
    recipes = write(tmp_path, "rootfs", "r", f"suite: trixie\npackages: [busybox-static]\nfiles: {files}\n")
    with pytest.raises(ScenarioError) as caught:
        recipes.rootfs("r")
    assert what in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipes = write(tmp_path, "rootfs", "r", "suite: trixie\npackages: [xx]\nfiles: {init: {source: innit}}\n")
    (tmp_path / "rootfs/files").mkdir()
    (tmp_path / "rootfs/files/init").touch()
    with pytest.raises(HostError, match="innit: No such file") as caught:
        rootfs_inputs(recipes.rootfs("r"), recipes)
    assert "init" in str(caught.value.hint)


def test_an_unknown_name_has_a_hint(tmp_path: Path) -> None:
    recipes = write(tmp_path, "kernels", "trixie", KERNEL)
    with pytest.raises(HostError, match="there is no recipe 'trixi'") as caught:
        recipes.kernel("trixi")
    assert "trixie" in str(caught.value.hint)
    with pytest.raises(HostError) as caught:
        recipes.kernel("../kernels/trixie")
    with pytest.raises(HostError) as caught:
        recipes.module("zz")
    assert caught.value.hint == "known are: none"


def test_an_architecture_without_packages(tmp_path: Path) -> None:
    recipe = write(tmp_path, "kernels", "k", KERNEL).kernel("k")
    assert recipe.packages("amd64", "k").packages == ("linux-image-amd64",)
    with pytest.raises(HostError, match="kernel k is not made for arm64") as caught:
        recipe.packages("arm64", "k")
    assert caught.value.hint == "it is for amd64"


def test_inputs_follow_what_matters(tmp_path: Path) -> None:
    one = write(tmp_path, "kernels", "k", KERNEL).kernel("k")
    more = KERNEL + "  arm64: {packages: [linux-image-arm64], format: Image}\n"
    other = write(tmp_path, "kernels", "k", "# a comment\n" + more).kernel("k")
    assert kernel_inputs(one, one.architectures["amd64"]) == kernel_inputs(other, other.architectures["amd64"])

    files = tmp_path / "rootfs" / "files"
    recipes = write(tmp_path, "rootfs", "r", "suite: trixie\npackages: [xx]\nfiles: {init: {source: init}}\n")
    files.mkdir()
    (files / "init").write_text("1")
    before = rootfs_inputs(recipes.rootfs("r"), recipes)
    (files / "init").write_text("2")
    assert rootfs_inputs(recipes.rootfs("r"), recipes) != before


def test_the_root_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "kernels", "mine", KERNEL)
    monkeypatch.setenv("HARNESS_IMAGES", str(tmp_path))
    assert Recipes().names("kernels") == ["mine"]
