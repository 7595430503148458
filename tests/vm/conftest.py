"""Real guests, started by the real command, and what must be left of them afterwards: nothing.

A :class:`Bench` is a directory with scenarios and a TMPDIR of its own. Whatever a run starts inherits that TMPDIR, so
that everything it started can be found again, whoever its parent is by then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

#: Everything that is too slow for every day: each signal in each phase, and more.
ALL = os.environ.get("HARNESS_TEST_ALL", "") == "1"

#: How long a run may take on a host that does much else too; only a hang takes it.
PATIENCE_S = 900
#: More than any run takes here, and less than one that waits for a machine that is gone: steps that must be cut short
#: would go on for longer.
UNWAITED_S = 300
LONG_S = 1000
_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_FORWARD = re.compile(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s")
_UNHEARD = ("PYTEST_", "HARNESS_CONSOLE_", "COV_")

only_all = pytest.mark.skipif(not ALL, reason="HARNESS_TEST_ALL is not 1")
#: One of each kind of bad luck: a minute and a half of it belongs to every ``make test``.
quick = pytest.mark.quick
NO_CHANGE: Mapping[str, str | None] = {}

_SAYS = {"guest.run": {"as": "said", "argv": ["echo", "hello"]}}
_SAID = "said.stdout == 'hello'"


def slow(*values: object, id: str | None = None) -> Any:
    """A parameter set that runs only with ``HARNESS_TEST_ALL=1``."""
    return pytest.param(*values, id=id, marks=only_all)


def until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.005)


@dataclass(frozen=True)
class Done:
    """A run that has ended.

    :param status: its exit status, negative for a signal.
    :param text: what it printed.
    :param summary: what it wrote with ``--json``; None when it wrote nothing.
    """

    status: int
    text: str
    summary: Mapping[str, Any] | None
    seconds: float

    @property
    def scenarios(self) -> list[dict[str, Any]]:
        """The scenarios of the summary."""
        assert self.summary is not None, self.text
        return list(self.summary["scenarios"])

    @property
    def only(self) -> dict[str, Any]:
        """The one scenario of the summary."""
        (scenario,) = self.scenarios
        return scenario

    def came_to(self, status: int, verdict: str, *reason: str) -> dict[str, Any]:
        """Assert what came of the one scenario, which is told to a person too, and give its result."""
        result = self.only
        story = json.dumps({name: result[name] for name in ("verdict", "reason", "crashes")}, indent=1)
        assert (self.status, result["verdict"]) == (status, verdict), f"{story}\n{self.text}"
        for part in reason:
            assert part in result["reason"], f"{part!r} is not in\n{result['reason']}"
            assert part in self.text.replace("\n", " ") or verdict == "pass", f"{part!r} is not in\n{self.text}"
        file = Path(result["results"]) / "result.json"
        if file.exists():
            written = json.loads(file.read_text())
            assert (written["verdict"], written["reason"]) == (verdict, result["reason"])
        return result


class Run:
    """A run that was started.

    :param bench: where.
    :param process: the command itself.
    :param output: where its output goes, errors included.
    """

    def __init__(self, bench: Bench, argv: Sequence[str], environment: Mapping[str, str], stdin: bytes | None) -> None:
        self.bench = bench
        self._started = time.monotonic()
        bench.runs.append(self)
        self.output = bench.root / f"output-{len(bench.runs)}"
        self.json = bench.root / "summary.json"
        self.json.unlink(missing_ok=True)
        # A shell's background job ignores SIGINT, and so would everything that it starts.
        command = ["env", "--default-signal=INT,TERM,HUP", *argv]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=bench.root,
                env={**environment},
                start_new_session=True,
            )
        if self.process.stdin is not None and stdin is not None:
            self.process.stdin.write(stdin)
            self.process.stdin.close()

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is so, while it runs."""

        def so() -> object:
            ended = self.process.poll() is not None
            found = condition()
            assert found or not ended, f"it ended before {what}:\n{self.text}"
            return found

        until(so, what)

    def wait_for(self, text: str, *, times: int = 1) -> None:
        """Wait until it has printed something so many times."""
        self.until(lambda: self.text.count(text) >= times, f"{text!r} was said")

    def qemu(self) -> psutil.Process:
        """Its QEMU."""

        def found() -> list[psutil.Process]:
            return [process for process in self.bench.processes() if process.name().startswith("qemu-system")]

        self.until(found, "QEMU ran")
        return found()[0]

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: to the command alone, not to what it started."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> Done:
        """Wait for its end."""
        status = self.process.wait(timeout_s)
        summary = json.loads(self.json.read_text()) if self.json.exists() else None
        return Done(status, self.text, summary, time.monotonic() - self._started)


class Bench:
    """A place for runs.

    :param root: the directory in which they run: scenarios, results, what they print, and their TMPDIR.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tmp = root / "tmp"
        self.tmp.mkdir()
        self.runs: list[Run] = []

    def scenario(self, name: str = "story", **parts: Any) -> Path:
        """Write a scenario on the small PC; without more it says hello and passes.

        :param parts: its keys, ``assertions`` for ``assert``; those of ``boot`` are added to the default's.
        """
        whole = {
            "scenario": name,
            "feature": "balloon",
            "boot": {"machine": "pc", "memory_mib": 512, **parts.pop("boot", {})},
            "drive": parts.pop("drive", [_SAYS]),
            "assert": parts.pop("assertions", [_SAID]),
            **parts,
        }
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(whole, sort_keys=False))
        return path

    def environment(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """A run's environment.

        :param changes: what differs; None for what is missing.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_UNHEARD)}
        wanted = {**kept, "TMPDIR": str(self.tmp), "NO_COLOR": "1", **changes}
        return {name: value for name, value in wanted.items() if value is not None}

    def start(
        self,
        *arguments: str | Path,
        program: str = "harness",
        before: Sequence[str] = (),
        stdin: bytes | None = None,
        environment: Mapping[str, str | None] = NO_CHANGE,
    ) -> Run:
        """Start the command.

        :param program: one of this environment's programs.
        :param before: what starts it in turn, such as ``unshare``.
        :param environment: see :meth:`environment`.
        """
        argv = [*before, str(Path(sys.executable).with_name(program)), *map(str, arguments)]
        return Run(self, argv, self.environment(environment), stdin)

    def start_run(
        self,
        *arguments: str | Path,
        before: Sequence[str] = (),
        environment: Mapping[str, str | None] = NO_CHANGE,
    ) -> Run:
        """Start ``harness run`` under emulation, from a cold boot, with the summary where :class:`Run` looks for it."""
        fixed = ("--accel", "tcg", "--cold", "--results", "results", "--json", self.root / "summary.json")
        return self.start("run", *fixed, *arguments, before=before, environment=environment)

    def run(
        self,
        *arguments: str | Path,
        before: Sequence[str] = (),
        environment: Mapping[str, str | None] = NO_CHANGE,
    ) -> Done:
        """``harness run``, to its end."""
        return self.start_run(*arguments, before=before, environment=environment).wait()

    def processes(self) -> list[psutil.Process]:
        """All that runs started and that lives. A zombie does not: where PID 1 reaps nobody, there are some."""
        mark = f"TMPDIR={self.tmp}".encode()
        found = []
        for process in psutil.process_iter():
            try:
                environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if mark in environment and process.status() not in _DEAD:
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    def ports(self) -> set[int]:
        """The ports that QEMUs of these runs said they listen on."""
        transcripts = self.root.glob("**/qmp.jsonl")
        return {int(port) for path in transcripts for port in _FORWARD.findall(path.read_text(errors="replace"))}

    def temporary(self) -> list[str]:
        """What lies in TMPDIR."""
        return sorted(path.name for path in self.tmp.iterdir())

    def nothing_runs(self) -> None:
        """Assert that all processes have ended, and that nobody listens on their ports.

        A process that was killed is a zombie some milliseconds before the last of its threads has let go of its files.
        """

        def left() -> list[str]:
            names = [f"process {process.pid} {process.name()}" for process in self.processes()]
            return names + [f"port {port}" for port in self.ports() & _listening()]

        deadline = time.monotonic() + 60
        while still := left():
            assert time.monotonic() < deadline, f"left behind: {', '.join(still)}"
            time.sleep(0.02)

    def nothing_is_left(self) -> None:
        """Assert that no process, no port and no temporary file is left."""
        self.nothing_runs()
        assert self.temporary() == []


def _listening() -> set[int]:
    """The TCP ports on which somebody listens on this host."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {int(line.split()[1].rpartition(":")[2], 16) for line in lines if line.split()[3] == "0A"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A place for runs that must leave nothing."""
    # Not below tmp_path: the path of a Unix socket has 107 bytes at most.
    root = Path(tempfile.mkdtemp(prefix="bench-")).resolve()
    bench = Bench(root)
    try:
        yield bench
        bench.nothing_is_left()
    finally:
        for process in bench.processes():
            process.kill()
        for run in bench.runs:
            run.process.wait()
        shutil.copytree(root, tmp_path / "bench", symlinks=True, ignore=lambda *_: ["tmp", "cache"])  # to look at
        shutil.rmtree(root)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Runs have a TMPDIR of their own here, which :func:`bench` looks into."""
