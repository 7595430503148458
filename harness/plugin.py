"""pytest plugin: collects scenario files, runs them, and keeps FAIL and ERROR apart.

A scenario runs in its item's *setup*, and the item's *call* judges it. So pytest itself reports a fault of the host as
an error and a fault of the product as a failure, in its terminal output and in JUnit XML alike.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ExpectationFailed, HarnessError, HostError, ScenarioError
from harness.interrupts import unwind_on_signals
from harness.progress import Messages, SilentProgress
from harness.report.consoles import console_excerpt
from harness.report.progress import Silent
from harness.report.summary import RunFacts, make_summary
from harness.result import ScenarioResult, Verdict, write_json
from harness.runner import Interrupted
from harness.scenario.model import Scenario
from harness.session import Front, HarnessSession, error_report
from harness.unrun import Asked
from harness.workspace import Workspace

_SESSION: pytest.StashKey[HarnessSession] = pytest.StashKey()
_LOOKS_LIKE_SCENARIO = re.compile(r"^scenario:", re.MULTILINE)
_HEAD_BYTES = 4096


class ScenarioFile(pytest.File):
    """A scenario file; one item for each combination of its matrix."""

    def collect(self) -> Iterable[ScenarioItem]:
        """Load the file."""
        workspace = self.config.stash[_SESSION].workspace
        times = self.config.getoption("harness_repeat")
        runs = [(scenario, attempt) for scenario in workspace.load_file(self.path) for attempt in range(1, times + 1)]
        for scenario, attempt in runs:
            name = Path(scenario.id).name
            if times > 1:  # inside of the brackets, where pytest lets anything be
                name = f"{name[:-1]}#{attempt}]" if name.endswith("]") else f"{name}[#{attempt}]"
            item: ScenarioItem = ScenarioItem.from_parent(self, name=name, scenario=scenario, attempt=attempt)
            item.extra_keyword_matches.add(Path(scenario.id).name)  # -k knows each attempt by its scenario's name, too
            for tag in {*scenario.tags, scenario.feature}:
                self.config.addinivalue_line("markers", f"{tag}: scenarios with this tag")
                item.add_marker(tag)
            if self.config.pluginmanager.hasplugin("xdist"):
                item.add_marker(pytest.mark.xdist_group(_machine_of(scenario)))
            yield item

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:  # noqa: ARG002
        """A wrong file is told by its problems, not by a traceback."""
        if isinstance(excinfo.value, ScenarioError):
            return str(excinfo.value)
        return super().repr_failure(excinfo)


def _machine_of(scenario: Scenario) -> str:
    """What scenarios have in common that boot the same machine.

    With xdist's ``--dist loadgroup`` one worker runs them all, and the first saves the machine for the others.
    """
    described = json.dumps(scenario.boot.model_dump(), sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:8]


class ScenarioItem(pytest.Item):
    """One scenario; one run of it, where several are asked for."""

    def __init__(self, *, scenario: Scenario, attempt: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scenario = scenario
        self.attempt = attempt
        self.result: ScenarioResult | None = None

    def setup(self) -> None:
        """Run the scenario. Raises here for what is not the product's fault."""
        session = self.config.stash[_SESSION]
        try:
            result = session.runner.run(self.scenario, self.attempt)
        except Interrupted as interrupted:  # pytest makes no report of what Ctrl-C ends
            report = error_report(self.nodeid, self.location, interrupted.result)
            self.ihook.pytest_runtest_logreport(report=report)
            raise
        self.result = result
        for name, value in result.versions.items():
            self.user_properties.append((name, value))
        for tested in result.under_test:
            self.user_properties.append((f"under test {tested.component}", tested.sha256))
            self.user_properties += [(f"does not fit exactly: {tested.component}", line) for line in tested.inexact]
        self.user_properties.append(("accelerator", result.accel.get("used", "none")))
        self.user_properties.append(("results", str(result.results)))
        if result.verdict is Verdict.ERROR:
            raise HarnessError(f"{result.reason}{console_excerpt(result)}\n  logs: {result.results}")
        if result.verdict is Verdict.SKIP:
            pytest.skip(result.reason)

    def runtest(self) -> None:
        """Judge the product."""
        assert self.result is not None
        if self.result.verdict is Verdict.FAIL:
            failed = "".join(f"\n  does not hold: {item}" for item in self.result.failed_assertions)
            shown = f"{failed}{console_excerpt(self.result)}"
            raise ExpectationFailed(f"{self.result.reason}{shown}\n  logs: {self.result.results}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """A scenario's failure is told in its own words; a traceback only for faults of the harness itself."""
        if isinstance(excinfo.value, HarnessError | ExpectationFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the scenario stands."""
        return self.path, 0, self.scenario.id


def pytest_addoption(parser: pytest.Parser) -> None:
    """The harness's options."""
    group = parser.getgroup("harness", "scenarios on real machines")
    group.addoption("--accel", dest="harness_accel", choices=("auto", "kvm", "tcg"), default="auto")
    group.addoption("--results", dest="harness_results", metavar="DIR", help="directory for logs and evidence")
    group.addoption("--keep", dest="harness_keep", choices=("never", "failed", "always"), default="always")
    group.addoption("--cold", dest="harness_cold", action="store_true", help="boot every machine, use no saved one")
    group.addoption("--harness-history", dest="harness_history", metavar="FILE", help="record outcomes there")
    group.addoption(
        "--harness-repeat", dest="harness_repeat", metavar="N", type=int, default=1, help="run each scenario N times"
    )
    group.addoption("--harness-json", dest="harness_json", metavar="FILE", help="write a JSON summary")
    group.addoption(
        "--under-test",
        dest="harness_under_test",
        action="append",
        default=[],
        metavar="COMPONENT=SOURCE",
        help="test this in place of the recipe's own: a built file, a patch, a source tree",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set the session up, unless ``harness run`` has brought its own."""
    front = next((plugin for plugin in config.pluginmanager.get_plugins() if isinstance(plugin, Front)), None)
    progress = Messages(sys.stderr) if hasattr(config, "workerinput") else SilentProgress()
    workspace = front.workspace if front else Workspace(progress)
    if front:
        session = HarnessSession(config, workspace, front.progress, front.facts, front.only)
    else:
        session = HarnessSession(config, workspace, Silent(), RunFacts())
    config.stash[_SESSION] = session
    if front:
        front.session = session
        session.asked = front.asked
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Gather(session), "harness-gather")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """A YAML file is a scenario when it says so in its first lines, or was named on the command line."""
    if file_path.suffix != ".yaml":
        return None
    if not parent.session.isinitpath(file_path):
        with file_path.open("rb") as file:
            if not _LOOKS_LIKE_SCENARIO.search(file.read(_HEAD_BYTES).decode("utf-8", "replace")):
                return None
    collector: ScenarioFile = ScenarioFile.from_parent(parent, path=file_path)
    return collector


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another shard runs."""
    only = config.stash[_SESSION].only
    if only is not None:
        others = [item for item in items if not (isinstance(item, ScenarioItem) and item.scenario.id in only)]
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note what is going to run, where that was not known before."""
    asked = session.config.stash[_SESSION].asked
    if not asked:
        found = [item for item in session.items if isinstance(item, ScenarioItem)]
        asked += [Asked(item.nodeid, item.location, item.scenario, item.attempt) for item in found]


def pytest_sessionstart(session: pytest.Session) -> None:
    """SIGTERM unwinds like Ctrl-C: machines are killed, logs kept."""
    if session.config.stash.get(_SESSION, None) is not None:
        unwind_on_signals()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the result travel with the report: from an xdist worker to its controller."""
    report = yield
    if isinstance(item, ScenarioItem) and call.excinfo is not None and isinstance(call.excinfo.value, HarnessError):
        report.longrepr = str(call.excinfo.value)  # of a set-up, pytest would show a traceback of its own
    if isinstance(item, ScenarioItem) and item.result is not None and call.when == "setup":
        report.harness_result = item.result.to_json()  # type: ignore[attr-defined]
    return report


class Gather:
    """Collects results where the session is controlled, and writes the summary."""

    def __init__(self, session: HarnessSession) -> None:
        self._session = session
        self._recorded: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Let xdist's workers write where the controller says."""
        node.workerinput["harness_results"] = str(self._session.results)
        node.workerinput["harness_run"] = self._session.facts.run
        node.workerinput["harness_only"] = None if self._session.only is None else sorted(self._session.only)

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """A scenario begins; with ``-j`` this is all that is heard of it until it ends."""
        if ".yaml::" in nodeid and self._session.config.pluginmanager.hasplugin("dsession"):
            self._session.progress.began(location[2])
            self._session.begun.add(nodeid.partition("@")[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A scenario ended."""
        result = getattr(report, "harness_result", None)
        if result is not None and not getattr(report, "harness_begun", True):
            self._session.unbegun.append(result)
        elif result is not None:
            self._session.record(result)
            self._recorded.add(report.nodeid)
        elif report.failed and report.nodeid not in self._recorded and ".yaml::" in report.nodeid:
            # xdist tells so of a worker that was killed, and only that.
            self._session.record_lost(report.nodeid, str(report.longrepr))
            self._recorded.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Write ``--harness-json``: first, or no room for JUnit XML would mean no summary."""
        target = self._session.config.getoption("harness_json")
        if target is None:
            return
        told = [*self._session.finished, *self._session.unbegun]
        try:
            write_json(Path(target).absolute(), make_summary(told, self._session.facts))
        except OSError as error:  # JUnit XML, elsewhere, may still have room
            self._session.troubles.append(HostError(f"the summary cannot be written: {error}"))
