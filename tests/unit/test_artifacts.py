"""What a run leaves for whoever looks at it afterwards, when nothing of it could run: never nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.errors import BuildFailed
from harness.progress import SilentProgress
from harness.records.history import History
from harness.records.read import read_results, read_summary
from harness.result import Verdict
from harness.unrun import unrun_result
from harness.workspace import Workspace

CHECKOUT = Path(__file__).parents[2]
HARNESS = Path(sys.executable).with_name("harness")
RESIZE = ["balloon/resize[pc]", "balloon/resize[virt]"]


@dataclass(frozen=True)
class Left:
    """A run that has ended, and what it left."""

    root: Path
    status: int
    text: str

    def of(self, ids: Sequence[str], verdict: Verdict, *words: str) -> None:
        """Assert that each place tells the same of these scenarios, and of no other."""
        files = {path.parent: read_results(path) for path in self.root.glob("results/*/result.json")}
        assert sorted(item.id for item in files.values()) == sorted(ids), self.text
        summary = read_summary(self.root / "summary.json")
        assert sorted(item.id for item in summary.scenarios) == sorted(ids)
        page = (self.root / "page" / "index.html").read_text()
        cases = list(ElementTree.parse(self.root / "junit.xml").iter("testcase"))
        assert len(cases) == len(ids)
        for case in cases:
            error = case.find("error")
            assert error is not None
            assert all(word in str(error.text) for word in words), error.text
        for directory, item in files.items():
            assert item.verdict is verdict
            assert all(word in item.reason for word in words), item.reason
            assert item.run == summary.run
            assert (directory / "scenario.yaml").is_file()
            assert str(directory) in {told.results for told in summary.scenarios}
            assert item.id in page


class Bench:
    """Runs the real command where no image is there and none can be built."""

    def __init__(self, root: Path, mirror: str) -> None:
        self.root = root
        self._mirror = mirror

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        files = {"--results": "results", "--json": "summary.json", "--junit": "junit.xml", "--report": "page"}
        options = [part for option, name in files.items() for part in (option, str(self.root / name))]
        environment = {"HARNESS_CACHE": str(self.root / "cache"), "HARNESS_DEBIAN_MIRROR": self._mirror}
        return subprocess.Popen(
            ["env", "--default-signal=INT,TERM", HARNESS, "run", *options, *arguments],
            cwd=CHECKOUT,
            env={**os.environ, "NO_COLOR": "1", "HARNESS_STATE": str(self.root / "state"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, run: subprocess.Popen[str]) -> Left:
        text, _ = run.communicate(timeout=120)
        return Left(self.root, run.returncode, text)

    def run(self, *arguments: str | Path) -> Left:
        return self.end(self.start("scenarios/balloon/resize.yaml", *arguments))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """The archive does not answer: nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Bench(tmp_path, f"http://127.0.0.1:{port}/debian")


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Bench]:
    """The archive takes a connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Bench(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}/debian")


@pytest.mark.parametrize("arguments", [[], ["-j", "2"]], ids=["", "side by side"])
def test_an_archive_that_cannot_be_reached(bench: Bench, arguments: list[str]) -> None:
    left = bench.run(*arguments)
    assert left.status == 2, left.text
    left.of(RESIZE, Verdict.ERROR, "Could not connect", "hint: is the network up?")
    assert "balloon/resize[pc] and 1 more: " in left.text
    assert "Failed to fetch" in (left.root / "results" / "balloon-resize[pc]" / "build.log").read_text()


def test_each_attempt_has_a_result(bench: Bench) -> None:
    left = bench.run("--repeat", "2", "-k", "resize[pc]")
    left.of([RESIZE[0]] * 2, Verdict.ERROR, "Could not connect")
    assert sorted(item.attempt for item in read_summary(left.root / "summary.json").scenarios) == [1, 2]


def test_a_store_that_cannot_be(bench: Bench) -> None:
    (bench.root / "cache").touch()
    left = bench.run()
    assert left.status == 2, left.text
    left.of(RESIZE, Verdict.ERROR, "HARNESS_CACHE")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_images_are_built(slow: Bench, number: signal.Signals) -> None:
    """Nothing was tried, so a history has nothing to learn of it."""
    run = slow.start("scenarios/balloon/resize.yaml")
    apt = slow.root / "cache" / "apt"
    deadline = time.monotonic() + 60
    while not list(apt.glob("*/apt.conf")):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    run.send_signal(number)
    left = slow.end(run)
    assert left.status == 2, left.text
    left.of(RESIZE, Verdict.ERROR, "interrupted, or broke, before this began")
    assert "interrupted: 2 not begun" in left.text
    assert "Traceback" not in left.text
    assert History(slow.root / "state" / "history.sqlite").outcomes() == []


@pytest.mark.parametrize("lost", ["results", "summary.json", "junit.xml", "page"])
def test_one_place_that_cannot_be_written_spoils_no_other(bench: Bench, lost: str) -> None:
    """A file is where a directory would have to be, or the other way round; or the disk is full."""
    place = bench.root / lost
    if lost == "junit.xml":
        place.symlink_to("/dev/full")
    elif lost == "summary.json":
        place.mkdir()
    else:
        place.touch()
    left = bench.run()
    assert left.status == 2, left.text
    assert "Traceback" not in left.text
    assert "0 passed, 0 failed, 2 errors" in left.text
    wanted = {"summary.json", "junit.xml", "page/index.html", "results/balloon-resize[pc]/result.json"}
    there = {name for name in wanted if (bench.root / name).is_file()}
    assert there == {name for name in wanted if not name.startswith(lost)}
    told = json.loads((bench.root / "summary.json").read_text())["scenarios"] if lost != "summary.json" else []
    assert all(item["verdict"] == "error" and "Could not connect" in item["reason"] for item in told)


def test_all_that_a_build_printed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    scenarios, _ = Workspace(SilentProgress()).load([Path("scenarios/balloon/resize.yaml")])
    lines = [f"  CC      file-{number}.o" for number in range(100)]
    why = BuildFailed("module x does not build: x.c:1: error", tail=lines[-20:], output=lines)
    result = unrun_result(scenarios[0], 1, tmp_path, "run-1", why)
    assert (result.results / "build.log").read_text().splitlines() == lines
    assert lines[-1] in result.reason and lines[0] not in result.reason
