"""Guests that crash, reset, hang, or fall silent: whose fault it is, what is told of it, and what stays."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.vm.conftest import LONG_S, UNWAITED_S, Bench, Done, only_all, quick, slow

pytestmark = pytest.mark.vm

LONG = f"sleep {LONG_S}"
PANIC = f"echo c > /proc/sysrq-trigger; {LONG}"
PANIC_TITLE = "kernel panic: sysrq triggered crash"
#: How long QEMU's monitor is waited for.
MONITOR_S = 30
OOPS = "BUG: kernel NULL pointer dereference, address: 0000000000000008"
OOPS_TITLE = "BUG: kernel NULL pointer dereference"


def sh(script: str, *, name: str | None = None, timeout_s: float = LONG_S) -> dict[str, Any]:
    """A step that runs a script in the guest."""
    step: dict[str, Any] = {"argv": ["sh", "-c", script], "timeout_s": timeout_s}
    return {"guest.run": step if name is None else {"as": name, **step}}


SAYS = sh("echo hello", name="said")


def logs(done: Done) -> Path:
    """The directory of the one scenario's logs, with those in it that a person needs."""
    directory = Path(done.only["results"])
    assert {"console-guest.log", "qemu.argv", "qemu.log", "repro.sh", "result.json", "scenario.yaml"} <= {
        path.name for path in directory.iterdir()
    }
    return directory


# -- crashes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "boot",
    [
        pytest.param({"kernel_args": ["rdinit=/bin/nonexistent"]}, id="no init", marks=quick),
        slow({"kernel_args": ["rdinit=/bin/false"]}, id="an init that fails"),
        slow({"memory_mib": 80}, id="too little memory"),
    ],
)
def test_a_panic_that_the_image_is_to_blame_for(bench: Bench, boot: dict[str, Any]) -> None:
    """The kernel under test did as it was told: nothing about the product is known."""
    done = bench.run(bench.scenario(boot=boot))
    result = done.came_to(2, "error", "guest: ", "last console lines:", "log: ")
    assert "panic" in result["reason"]
    assert result["steps"] == []
    assert b"Kernel panic" in (logs(done) / "console-guest.log").read_bytes()


@quick
def test_a_panic(bench: Bench) -> None:
    done = bench.run(bench.scenario(drive=[SAYS, sh(PANIC)]))
    result = done.came_to(1, "fail", f"guest: {PANIC_TITLE}", "last console lines:", "end Kernel panic")
    assert [(crash["layer"], crash["title"]) for crash in result["crashes"]] == [("guest", PANIC_TITLE)]
    assert "drive[1].guest.run" in result["reason"]
    assert result["evidence"]["said"]["stdout"] == "hello"
    assert done.seconds < UNWAITED_S, "a machine that is known to be gone was waited for"
    logs(done)


@pytest.mark.parametrize("kernel_args", [pytest.param([], id="stays"), pytest.param(["panic=1"], id="resets")])
def test_a_panic_that_is_allowed_ends_the_scenario_well(bench: Bench, kernel_args: list[str]) -> None:
    allowed = [{"layer": "guest", "title": "sysrq triggered crash"}]
    boot = {"kernel_args": kernel_args}
    done = bench.run(bench.scenario(boot=boot, drive=[SAYS, sh(PANIC)], allow_crash=allowed))
    result = done.came_to(0, "pass")
    assert result["crashes"] == []
    assert done.seconds < UNWAITED_S, "a machine that is known to be gone was waited for"


@pytest.mark.parametrize(
    ("drive", "assertion", "hint"),
    [
        pytest.param([sh(PANIC), SAYS], "said.status == 0", "must be the last one", id="a step follows"),
        slow([SAYS, sh(PANIC, name="end")], "end.status == 0", "nothing can be asserted on end", id="asserted on"),
    ],
)
def test_nothing_can_follow_an_allowed_panic(
    bench: Bench, drive: list[dict[str, Any]], assertion: str, hint: str
) -> None:
    """Neither the product's fault nor a success: the scenario asks for what cannot be."""
    allowed = [{"layer": "guest", "title": "sysrq"}]
    done = bench.run(bench.scenario(drive=drive, assertions=[assertion], allow_crash=allowed))
    done.came_to(2, "error", PANIC_TITLE, hint)


@pytest.mark.parametrize(
    ("command", "title"),
    [
        pytest.param("reboot -f", "the machine reset itself", id="reset", marks=quick),
        slow("poweroff -f", "the machine powered itself off", id="power off"),
    ],
)
def test_a_guest_that_resets_itself(bench: Bench, command: str, title: str) -> None:
    """QEMU ends with 0 then, which is no success."""
    done = bench.run(bench.scenario(drive=[SAYS, sh(f"{command}; {LONG}")]))
    done.came_to(1, "fail", f"guest: {title}", "last console lines:")
    logs(done)


@only_all
def test_a_reset_that_is_allowed(bench: Bench) -> None:
    allowed = [{"layer": "guest", "title": "reset itself"}]
    bench.run(bench.scenario(drive=[SAYS, sh(f"reboot -f; {LONG}")], allow_crash=allowed)).came_to(0, "pass")


@pytest.mark.parametrize("allowed", [False, True], ids=["not allowed", "allowed"])
def test_a_crash_that_the_kernel_survives(bench: Bench, allowed: bool) -> None:
    """The kernel puts its timestamp before what is written to /dev/kmsg: on the console it is as good as an oops."""
    rules = [{"layer": "guest", "title": "NULL pointer dereference"}] if allowed else []
    drive = [sh(f"echo '<0>{OOPS}' > /dev/kmsg"), SAYS]
    done = bench.run(bench.scenario(drive=drive, allow_crash=rules))
    if allowed:
        assert done.came_to(0, "pass")["crashes"] == []
        return
    result = done.came_to(1, "fail", f"guest: {OOPS_TITLE}")
    assert [(crash["layer"], crash["title"], crash["severity"]) for crash in result["crashes"]] == [
        ("guest", OOPS_TITLE, "bug")
    ]
    assert any(OOPS in line for line in result["crashes"][0]["text"])
    assert result["failed_assertions"] == []
    assert result["evidence"]["said"]["stdout"] == "hello", "a kernel that lives on is driven on"


@pytest.mark.parametrize("allowed", [pytest.param(False, id="not allowed", marks=quick), slow(True, id="allowed")])
def test_a_crash_that_no_processor_can_have(bench: Bench, allowed: bool) -> None:
    """QEMU emulated it wrongly: nothing that comes of it is the product's, not even an assertion that fails."""
    rules = [{"layer": "guest", "title": "NULL pointer dereference"}] if allowed else []
    registers = "RSP: 0018:ffffc900001cbc40 EFLAGS: 0798ffda"
    drive = [sh(f"for line in '{OOPS}' '{registers}'; do echo \"<0>$line\" > /dev/kmsg; done"), SAYS]
    done = bench.run(bench.scenario(drive=drive, assertions=["said.stdout == 'bye'"], allow_crash=rules))
    result = done.came_to(2, "error", "flags that no processor can have")
    assert len(result["failed_assertions"]) == 1
    assert "flags that no processor can have" in result["retried"]
    assert result["results"].endswith("-retry")


# -- hangs ------------------------------------------------------------------------------------------------------


def test_a_command_that_never_ends(bench: Bench) -> None:
    done = bench.run(bench.scenario(drive=[SAYS, sh(LONG, timeout_s=4)]))
    result = done.came_to(2, "error", "did not end in time", "last console lines:", "log: ", "hint: ", "timeout_s")
    assert "drive[1].guest.run" in result["reason"]
    assert 16 <= result["steps"][1]["seconds"] < UNWAITED_S, "4 s, times 4 for emulation"
    assert result["evidence"]["said"]["stdout"] == "hello"
    assert '"timed_out": true' in (logs(done) / "ssh.jsonl").read_text()


def test_a_qemu_that_is_stopped(bench: Bench) -> None:
    run = bench.start_run(bench.scenario(drive=[SAYS, sh(LONG, timeout_s=4)]))
    run.wait_for("step 2/2")
    run.qemu().suspend()
    done = run.wait()
    result = done.came_to(2, "error", "qemu: ", "SIGSTOP", "hint: ")
    assert result["retried"] is None
    seconds = result["seconds"]
    afterwards = seconds["total"] - sum(seconds[phase] for phase in ("build", "first_command", "load", "drive"))
    assert afterwards < MONITOR_S, "a QEMU that does not run cannot be asked to do anything"


@quick
def test_an_ssh_server_that_is_killed(bench: Bench) -> None:
    done = bench.run(bench.scenario(drive=[SAYS, sh(f"killall -9 dropbear; {LONG}")]))
    result = done.came_to(2, "error", "guest: the SSH connection broke", "last console lines:", "hint: ")
    assert result["retried"] is None, "what went wrong in a guest is not tried again"
    assert done.seconds < UNWAITED_S


# -- QEMU killed from outside -----------------------------------------------------------------------------------


def test_a_qemu_that_is_killed_once_gets_another_try(bench: Bench) -> None:
    run = bench.start_run(bench.scenario(drive=[SAYS, sh("sleep 15")]))  # the second try ends well after that
    qemu = run.qemu()
    run.wait_for("step 2/2")
    qemu.kill()
    result = run.wait().came_to(0, "pass")
    assert "SIGKILL" in result["retried"]
    assert Path(result["results"]).name.endswith("-retry")
    first = bench.root / "results" / "story"
    assert "SIGKILL" in (first / "result.json").read_text(), "the first attempt's logs stay"


def test_a_qemu_that_is_killed_each_time(bench: Bench) -> None:
    """Here by what a person would use, which QEMU obeys with exit status 0, as if the guest had ended."""
    run = bench.start_run(bench.scenario(drive=[SAYS, sh(LONG)]))
    run.wait_for("step 2/2")
    run.qemu().send_signal(signal.SIGTERM)
    run.wait_for(": boot", times=2)
    run.qemu().kill()
    result = run.wait().came_to(2, "error", "qemu: ", "SIGKILL")
    assert "signal from outside" in result["retried"]
    assert run.text.count(": boot") == 2, "one more try, and no third"


# -- a flood ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_mib", [pytest.param(1, marks=quick), slow(64)])
def test_a_console_that_is_flooded(bench: Bench, limit_mib: int) -> None:
    """With 200 MB and more; what was said until it was seen is on the disk, and no more."""
    flood = "tr '\\0' x < /dev/zero > /dev/console"
    limit = {"HARNESS_CONSOLE_LIMIT_MIB": str(limit_mib) if limit_mib != 64 else None}
    done = bench.run(bench.scenario(drive=[SAYS, sh(flood)]), environment=limit)
    done.came_to(2, "error", f"guest: the console printed more than {limit_mib} MiB", "log: ", "hint: ")
    assert limit_mib << 20 < (logs(done) / "console-guest.log").stat().st_size < (limit_mib + 32) << 20
    assert len(done.text) < 100_000
