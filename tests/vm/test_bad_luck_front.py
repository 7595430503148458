"""The front doors: ``harness shell`` with a script at its keyboard, pytest itself, and several scenarios at once."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.vm.conftest import Bench, Done, quick, slow

pytestmark = pytest.mark.vm

SLEEPS = {"guest.run": {"argv": ["sleep", "1000"], "timeout_s": 1000}}
SAYS = {"guest.run": {"as": "said", "argv": ["echo", "hello"]}}
NEVER = "said.stdout == 'good bye'"
NO_INIT = {"kernel_args": ["rdinit=/bin/nonexistent"]}


# -- harness shell ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [pytest.param("ssh", marks=quick), pytest.param("console", marks=quick)])
def test_a_shell_for_a_script(bench: Bench, where: str) -> None:
    """It ends when the script does, and so does the machine."""
    story = bench.scenario(load=[{"guest": "virtio_balloon"}])
    arguments: list[str | Path] = [story, "--cold", "--accel", "tcg", *(["--console"] if where == "console" else [])]
    keys = b"uname -r\necho $((6 * 7)) answers\n"
    done = bench.start("shell", *arguments, stdin=keys).wait()
    assert done.status == 0, done.text
    assert "loaded virtio_balloon in guest" in done.text
    assert "-amd64" in done.text.partition("Ctrl-]")[2], "uname's answer"
    assert "42 answers" in done.text
    assert "the machine is gone; its logs are in" in done.text
    (results,) = (bench.root / "results").iterdir()
    assert b"harness: ready" in (results / "console-guest.log").read_bytes()
    bench.nothing_is_left()


@quick
def test_the_machine_of_a_run_that_failed(bench: Bench) -> None:
    """It is booted and loaded as that run did, and refused when it is not the same."""
    story = bench.scenario(load=[{"guest": "virtio_balloon"}], assertions=["said.stdout == 'goodbye'"])
    failed = bench.run(story)
    assert failed.status == 1, failed.text
    results = Path(failed.scenarios[0]["results"])
    assert f"harness shell --from {results}" in failed.text
    story.unlink()  # the results are enough
    again = bench.start("shell", "--from", results, stdin=b"echo $((6 * 7)) answers; lsmod\n").wait()
    assert again.status == 0, again.text
    assert "story: booting under tcg" in again.text
    assert "42 answers" in again.text
    assert "virtio_balloon" in again.text.partition("42 answers")[2]
    result = json.loads((results / "result.json").read_text())
    result["versions"]["module virtio_balloon"] = "00"
    (results / "result.json").write_text(json.dumps(result))
    refused = bench.start("shell", "--from", results, stdin=b"echo never\n").wait()
    assert refused.status == 2, refused.text
    assert "module virtio_balloon is another one than in that run" in refused.text
    bench.nothing_is_left()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        pytest.param(b"echo c > /proc/sysrq-trigger\nsleep 1000\n", "sysrq triggered crash", id="panics"),
        pytest.param(b"reboot -f\nsleep 1000\n", "the machine reset itself", id="resets", marks=quick),
    ],
)
def test_a_shell_whose_machine_ends(bench: Bench, keys: bytes, words: str) -> None:
    done = bench.start("shell", bench.scenario(), "--accel", "tcg", stdin=keys).wait()
    assert done.status == 2, done.text
    assert words in done.text
    assert "Traceback" not in done.text


@pytest.mark.parametrize("number", [slow(signal.SIGTERM, id="SIGTERM"), slow(signal.SIGHUP, id="SIGHUP")])
def test_a_shell_that_is_interrupted(bench: Bench, number: signal.Signals) -> None:
    run = bench.start("shell", bench.scenario(), "--accel", "tcg", stdin=b"sleep 1000\n")
    run.wait_for("Ctrl-]")
    run.signal(number)
    done = run.wait()
    assert done.status == 2, done.text
    assert f"interrupted by {number.name}" in done.text
    bench.nothing_is_left()


@quick
def test_a_shell_for_more_than_one_machine(bench: Bench) -> None:
    story = bench.scenario(boot={"machine": "${machine}"}, matrix={"machine": ["pc", "virt"]})
    done = bench.start("shell", story).wait()
    assert done.status == 4, done.text
    assert "story[pc], story[virt]" in done.text
    assert "choose with -k" in done.text


# -- pytest -----------------------------------------------------------------------------------------------------


def cases(path: Path) -> dict[str, ElementTree.Element]:
    """The test cases of a JUnit file, by name."""
    return {str(case.get("name")): case for case in ElementTree.parse(path).iter("testcase")}


def properties(case: ElementTree.Element) -> dict[str, str]:
    """The properties of a test case."""
    return {str(item.get("name")): str(item.get("value")) for item in case.iter("property")}


def test_pytest_runs_scenarios(bench: Bench) -> None:
    """Two at once; what is the product's fault is a failure, what is not is an error, and each says what it ran on."""
    stories = bench.root / "scenarios"
    stories.mkdir()
    for path in (
        bench.scenario("good", load=[{"guest": "virtio_balloon"}]),
        bench.scenario("bad", assertions=[NEVER]),
        bench.scenario("ugly", boot=NO_INIT),
        bench.scenario("other"),
    ):
        path.rename(stories / path.name)
    junit, summary = bench.root / "junit.xml", bench.root / "summary.json"
    options: list[str | Path] = ["--accel", "tcg", "--junitxml", junit, "--harness-json", summary]
    options += ["--results", "results", "-n", "2"]
    done = bench.start("scenarios", *options, "-k", "good or bad or ugly", "-p", "no:tmpdir", program="pytest").wait()
    assert done.status == 1, done.text

    found = cases(junit)
    assert set(found) == {"good", "bad", "ugly"}
    kinds = {name: {child.tag for child in case} - {"properties"} for name, case in found.items()}
    assert kinds == {"good": set(), "bad": {"failure"}, "ugly": {"error"}}
    told = properties(found["good"])
    assert told["accelerator"] == "tcg"
    assert told["kernel"].endswith("-amd64")
    assert told["qemu"][0].isdigit()
    assert len(told["kernel_sha256"]) == len(told["rootfs_sha256"]) == 64
    assert told["module virtio_balloon"]
    assert Path(told["results"]).is_relative_to(bench.root / "results")
    failure, error = found["bad"].find("failure"), found["ugly"].find("error")
    assert failure is not None
    assert NEVER in str(failure.text)
    assert '"hello"' in str(failure.text)
    assert error is not None
    assert "panic" in str(error.text)

    assert verdicts(done) == {"good": "pass", "bad": "fail", "ugly": "error"}
    for scenario in done.scenarios:
        assert (Path(scenario["results"]) / "result.json").exists()
    bench.nothing_is_left()


def verdicts(done: Done) -> Mapping[str, str]:
    """The verdicts in a summary, by the last part of the id."""
    return {scenario["id"].rpartition("/")[2]: scenario["verdict"] for scenario in done.scenarios}


def test_stop_at_the_first(bench: Bench) -> None:
    """An ERROR stops a run as a FAIL does."""
    junit = bench.root / "junit.xml"
    stories = [bench.scenario("ugly", boot=NO_INIT), bench.scenario("never")]
    done = bench.run("-x", "--junit", junit, *stories)
    done.came_to(2, "error", "panic")
    assert {name: {child.tag for child in case} & {"failure", "error"} for name, case in cases(junit).items()} == {
        "ugly": {"error"}
    }
    assert "never" not in done.text


def test_a_worker_that_is_killed_is_no_success(bench: Bench) -> None:
    """As the OOM killer does. Its scenario is not lost from the summary, and the others go on."""
    run = bench.start_run("-j", "2", bench.scenario("doomed", drive=[SLEEPS, SAYS]), bench.scenario())

    run.until((bench.root / "results" / "doomed" / "console-guest.log").exists, "the guest's first words")
    qemu = next(process for process in bench.processes() if "/doomed/" in " ".join(process.cmdline()))
    worker = qemu.parent()
    assert worker is not None
    assert worker.pid != run.process.pid
    worker.kill()
    done = run.wait()
    assert done.status == 2, done.text
    assert verdicts(done) == {"doomed": "error", "story": "pass"}
    lost = next(scenario for scenario in done.scenarios if scenario["id"] == "doomed")
    assert "crashed" in lost["reason"]
    assert "no result" in done.text
    bench.nothing_runs()
    assert bench.run(bench.scenario("next", boot=NO_INIT)).status == 2
    bench.nothing_is_left()
