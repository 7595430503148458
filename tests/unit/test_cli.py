"""The command line where something around the scenarios is wrong: exit statuses, words, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from harness.errors import HarnessError, HostError
from harness.images import Images, Recipes, Store
from harness.progress import SilentProgress
from harness.workspace import Workspace

CHECKOUT = Path(__file__).parents[2]
HARNESS = Path(sys.executable).with_name("harness")


def run(arguments: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HARNESS, *arguments],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def no_archive(tmp_path: Path) -> dict[str, str]:
    """An environment in which no image is there, and none can be built."""
    return {"HARNESS_CACHE": str(tmp_path / "cache"), "HARNESS_DEBIAN_MIRROR": "file:/nonexistent"}


def test_images_are_prepared_for_what_runs_and_for_nothing_else(tmp_path: Path, no_archive: dict[str, str]) -> None:
    summary = tmp_path / "summary.json"
    arguments: list[str | Path] = [
        "run",
        CHECKOUT / "scenarios",
        "-k",
        "resize and virt",
        "--json",
        summary,
        "--results",
        tmp_path / "r",
    ]
    done = run(arguments, CHECKOUT, **no_archive)
    assert done.returncode == 2, done.stderr
    assert "index for arm64" in done.stderr
    assert "index for ppc64el" not in done.stderr
    assert "HARNESS_DEBIAN_MIRROR" in done.stdout
    told = json.loads(summary.read_text())["scenarios"]
    assert sorted(item["id"].rpartition("/")[2] for item in told) == ["resize-during-compaction[virt]", "resize[virt]"]
    assert {item["verdict"] for item in told} == {"error"}
    assert len(list((tmp_path / "r").glob("*/result.json"))) == 2


def test_nothing_is_prepared_for_nothing(tmp_path: Path, no_archive: dict[str, str]) -> None:
    done = run(["run", CHECKOUT / "scenarios", "-k", "nosuch", "--results", tmp_path / "r"], CHECKOUT, **no_archive)
    assert done.returncode == 3, done.stderr
    assert "index" not in done.stderr


@pytest.mark.parametrize("command", ["check", "doctor", "run", "schema"])
def test_a_recipe_that_is_wrong(tmp_path: Path, command: str) -> None:
    images = shutil.copytree(CHECKOUT / "images", tmp_path / "images")
    with (images / "machines" / "pc.yaml").open("a") as file:
        file.write("bogus: 1\n")
    done = run([command], CHECKOUT, HARNESS_IMAGES=str(images))
    assert done.returncode == 4, done.stderr
    assert "pc.yaml" in done.stdout + done.stderr
    assert "bogus: unknown key" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "status"), [("list", 0), ("prune", 2), ("build", 2)])
def test_a_store_that_cannot_be(tmp_path: Path, command: str, status: int) -> None:
    (tmp_path / "file").touch()
    done = run(["images", command], tmp_path, HARNESS_CACHE=str(tmp_path / "file" / "cache"))
    assert "Traceback" not in done.stderr
    assert done.returncode == status
    assert ("error: HostError" in done.stdout + done.stderr) is (status == 2)
    assert ("HARNESS_CACHE" in done.stdout + done.stderr) is (status == 2)


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    with subprocess.Popen(
        [HARNESS, "schema"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


class Mixed(Images):
    """An archive that lacks one architecture."""

    def __init__(self, root: Path) -> None:
        super().__init__(Recipes(), Store(root), SilentProgress())
        self.asked: list[tuple[str, str]] = []

    def kernel(self, name: str, arch: object, *, anew: bool = False) -> object:  # type: ignore[override]
        self.asked.append((name, str(arch)))
        if arch == "arm64":
            raise HostError("the archive has no arm64")
        return None

    def rootfs(self, name: str, arch: object) -> Path:
        return Path("rootfs")


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, HarnessError], Mixed]]:
    monkeypatch.chdir(CHECKOUT)
    workspace = Workspace(SilentProgress())
    images = Mixed(tmp_path)
    vars(workspace)["images"] = images
    scenarios, problems = workspace.load([Path("scenarios/balloon/resize.yaml"), Path("scenarios/balloon/stats.yaml")])
    assert not problems
    yield workspace.prepare(scenarios), images


def test_an_architecture_that_cannot_be_had_keeps_no_other_from_running(
    refused: tuple[dict[str, HarnessError], Mixed],
) -> None:
    errors, images = refused
    assert sorted(errors) == ["balloon/resize[virt]", "balloon/stats[virt]"]
    assert images.asked == [("trixie", "amd64"), ("trixie", "arm64")], "each image once"


def test_what_cannot_be_built_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each of many scenarios would wait for the same dead network."""
    monkeypatch.setenv("HARNESS_DEBIAN_MIRROR", "file:/nonexistent")
    phases: list[str] = []

    class Heard(SilentProgress):
        def phase(self, name: str) -> None:
            phases.append(name)

    images = Images(Recipes(), Store(tmp_path), Heard())
    told = []
    for _ in range(2):
        with pytest.raises(HostError) as caught:
            images.kernel("trixie", "amd64")
        told.append(caught.value.explain())
    assert phases == ["reading Debian trixie's index for amd64"]
    assert told[0] == told[1]
    assert "hint: " in told[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param([], "either a scenario file or --from is needed", id="nothing"),
        pytest.param(["x.yaml", "--from", "."], "either a scenario file or --from is needed", id="both"),
        pytest.param(["--from", ".", "-k", "pc"], "leave out -k and --under-test", id="a row"),
        pytest.param(["--from", ".", "--under-test", "kernel=x"], "leave out -k and --under-test", id="other code"),
        pytest.param(["--from", "."], "is no scenario's results", id="no results"),
    ],
)
def test_a_shell_that_cannot_be_told_which_machine(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(["shell", *arguments], tmp_path)
    assert done.returncode == 4, done.stderr
    assert words in done.stderr


def test_a_shell_where_only_the_results_are_left(tmp_path: Path, no_archive: dict[str, str]) -> None:
    """They are read; what is missing is what they name."""
    scenario = CHECKOUT / "scenarios" / "balloon" / "resize.yaml"
    summary, results = tmp_path / "summary.json", tmp_path / "r"
    done = run(["run", scenario, "-k", "resize[pc]", "--json", summary, "--results", results], CHECKOUT, **no_archive)
    assert done.returncode == 2
    (told,) = json.loads(summary.read_text())["scenarios"]
    (results / "result.json").write_text(json.dumps({"schema": 1, **told}))
    (results / "scenario.yaml").write_text("scenario: x\n")
    done = run(["shell", "--from", results], CHECKOUT, **no_archive)
    assert done.returncode == 4
    assert "that run of balloon/resize[pc] ended before it had a machine" in done.stderr
    (results / "result.json").write_text(json.dumps({"schema": 7, **told}))
    done = run(["shell", "--from", results], CHECKOUT, **no_archive)
    assert done.returncode == 4
    assert "schema: must be 1, got 7" in done.stderr
