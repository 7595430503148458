"""pytest plugin: collects scenario files, runs them, and keeps FAIL and ERROR apart.

A scenario runs in its item's *setup*, and the item's *call* judges it. So pytest itself reports a fault of the host as
an error and a fault of the product as a failure, in its terminal output and in JUnit XML alike.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Generator, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ExpectationFailed, HarnessError, ScenarioError
from harness.interrupts import unwind_on_signals
from harness.progress import SilentProgress
from harness.report.progress import Progress, Silent
from harness.report.summary import make_summary
from harness.result import ScenarioResult, Verdict, write_json
from harness.runner import Interrupted, Runner, Settings
from harness.scenario.model import Scenario
from harness.workspace import Workspace

_SESSION: pytest.StashKey[HarnessSession] = pytest.StashKey()
_LOOKS_LIKE_SCENARIO = re.compile(r"^scenario:", re.MULTILINE)
_HEAD_BYTES = 4096


class HarnessSession:
    """What scenario items of one pytest session share.

    :param workspace: recipes, store and the rest; ``harness run`` hands in its own.
    :param progress: who is told how scenarios go.
    """

    def __init__(self, config: pytest.Config, workspace: Workspace, progress: Progress) -> None:
        self.config = config
        self.workspace = workspace
        self.progress = progress
        self.finished: list[dict[str, Any]] = []
        self._runner: Runner | None = None

    @property
    def results(self) -> Path:
        """Where this session's results go."""
        given = getattr(self.config, "workerinput", {}).get("harness_results") or self.config.getoption(
            "harness_results"
        )
        if given is None:
            given = str(Path("results") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S"))
            self.config.option.harness_results = given
        return Path(given).absolute()

    @property
    def runner(self) -> Runner:
        """The runner; made at first use, so that collecting costs nothing."""
        if self._runner is None:
            workspace = self.workspace
            workspace.sweep()
            request = self.config.getoption("harness_accel")
            settings = Settings(
                images=workspace.images,
                profiles=workspace.profiles,
                verbs=workspace.verbs,
                accelerator=lambda arch: workspace.accelerator(request, arch),
                results=self.results,
                saved=None if self.config.getoption("harness_cold") else workspace.saved,
                overrides=workspace.overrides(self.config.getoption("harness_under_test")),
                keep=self.config.getoption("harness_keep"),
            )
            self._runner = Runner(settings, self.progress)
        return self._runner

    def record(self, result: dict[str, Any]) -> None:
        """A scenario ended; the result is as ``to_json`` gives it."""
        self.finished.append(result)
        self.progress.finished(result)

    def record_lost(self, name: str, why: str) -> None:
        """A scenario was begun and nothing came of it: the process that ran it was killed, or its set-up failed."""
        reason = f"no result: {why.strip()}"
        self.record(ScenarioResult(name, name, "", (), {}, self.results, reason=reason).to_json())


class Front:
    """``harness run``'s part in a pytest session: its workspace, its progress, and what came of it.

    pytest's own terminal output goes nowhere; other plugins still find a reporter.
    """

    def __init__(self, workspace: Workspace, progress: Progress) -> None:
        self.workspace = workspace
        self.progress = progress
        self.session: HarnessSession | None = None
        self.interrupted = False
        self.selected: list[Scenario] = []

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The results so far, as ``to_json`` gives them."""
        return self.session.finished if self.session else []

    @property
    def results(self) -> Path | None:
        """Where results went."""
        return self.session.results if self.session else None

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Replace the terminal reporter by one that nobody hears."""
        manager = config.pluginmanager
        reporter = manager.get_plugin("terminalreporter")
        if reporter is not None:
            manager.unregister(reporter)
            manager.register(type(reporter)(config, io.StringIO()), "terminalreporter")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """What is going to run; with ``-j`` only the workers know."""
        self.selected = [item.scenario for item in session.items if isinstance(item, ScenarioItem)]

    def pytest_keyboard_interrupt(self) -> None:
        """Ctrl-C or SIGTERM."""
        self.interrupted = True


class ScenarioFile(pytest.File):
    """A scenario file; one item for each combination of its matrix."""

    def collect(self) -> Iterable[ScenarioItem]:
        """Load the file."""
        workspace = self.config.stash[_SESSION].workspace
        for scenario in workspace.load_file(self.path):
            name = Path(scenario.id).name
            item: ScenarioItem = ScenarioItem.from_parent(self, name=name, scenario=scenario)
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
    """One scenario."""

    def __init__(self, *, scenario: Scenario, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scenario = scenario
        self.result: ScenarioResult | None = None

    def setup(self) -> None:
        """Run the scenario. Raises here for what is not the product's fault."""
        session = self.config.stash[_SESSION]
        try:
            result = session.runner.run(self.scenario)
        except Interrupted as interrupted:  # pytest makes no report of what Ctrl-C ends
            if not hasattr(self.config, "workerinput"):
                session.record(interrupted.result.to_json())
            raise
        self.result = result
        for name, value in result.versions.items():
            self.user_properties.append((name, value))
        self.user_properties.append(("accelerator", result.accel.get("used", "none")))
        self.user_properties.append(("results", str(result.results)))
        if result.verdict is Verdict.ERROR:
            raise HarnessError(result.reason)
        if result.verdict is Verdict.SKIP:
            pytest.skip(result.reason)

    def runtest(self) -> None:
        """Judge the product."""
        assert self.result is not None
        if self.result.verdict is Verdict.FAIL:
            failed = "".join(f"\n  does not hold: {item}" for item in self.result.failed_assertions)
            raise ExpectationFailed(f"{self.result.reason}{failed}\n  logs: {self.result.results}")

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
    workspace = front.workspace if front else Workspace(SilentProgress())
    session = HarnessSession(config, workspace, front.progress if front else Silent())
    config.stash[_SESSION] = session
    if front:
        front.session = session
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

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A scenario ended."""
        result = getattr(report, "harness_result", None)
        if result is not None:
            self._session.record(result)
            self._recorded.add(report.nodeid)
        elif report.failed and report.nodeid not in self._recorded and ".yaml::" in report.nodeid:
            # xdist tells so of a worker that was killed, and only that.
            self._session.record_lost(report.nodeid.rpartition("::")[2].partition("@")[0], str(report.longrepr))
            self._recorded.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write ``--harness-json``."""
        target = self._session.config.getoption("harness_json")
        if target is not None:
            write_json(Path(target).absolute(), make_summary(self._session.finished))
