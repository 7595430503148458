"""What one pytest session of scenarios knows, and what ``harness run`` adds to it."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError, HostError
from harness.records.recorder import Recorder
from harness.records.shards import Shard
from harness.report.progress import Progress
from harness.report.summary import RunFacts
from harness.result import ScenarioResult
from harness.runner import Runner, Settings
from harness.unrun import Asked, blank_result, directory_name, unrun_result, write_result
from harness.workspace import Workspace


class HarnessSession:
    """What scenario items of one pytest session share.

    :param workspace: recipes, store and the rest; ``harness run`` hands in its own.
    :param progress: who is told how scenarios go.
    :param facts: what this run is known by; pytest-xdist's workers take it from their controller.
    :param only: ids of the scenarios that may run; None lets all.
    """

    def __init__(
        self,
        config: pytest.Config,
        workspace: Workspace,
        progress: Progress,
        facts: RunFacts,
        only: frozenset[str] | None = None,
    ) -> None:
        told = getattr(config, "workerinput", {})
        self.config = config
        self.workspace = workspace
        self.progress = progress
        self.facts = RunFacts(run=told.get("harness_run", facts.run), started=facts.started, shard=facts.shard)
        self.only = frozenset(told["harness_only"]) if told.get("harness_only") is not None else only
        self.finished: list[dict[str, Any]] = []
        self.unbegun: list[dict[str, Any]] = []
        self.asked: list[Asked] = []
        self.begun: set[str] = set()
        self.troubles: list[HarnessError] = []
        history = config.getoption("harness_history")
        self._recorder = Recorder(Path(history)) if history is not None and not told else None
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
                run=self.facts.run,
            )
            self._runner = Runner(settings, self.progress)
        return self._runner

    def record(self, result: dict[str, Any]) -> None:
        """A scenario ended; the result is as ``to_json`` gives it."""
        self.finished.append(result)
        self.progress.finished(result)
        if self._recorder is not None and (trouble := self._recorder.record(result)) is not None:
            self.progress.message(trouble)

    def record_lost(self, node: str, why: str) -> None:
        """A scenario was begun and nothing came of it: the process that ran it was killed, or its set-up failed."""
        node = node.partition("@")[0]
        item = next((item for item in self.asked if item.node == node), None)
        if item is None:
            name = node.rpartition("::")[2]
            lost = ScenarioResult(name, name, "", (), {}, self.results, run=self.facts.run)
        else:
            lost = blank_result(
                item.scenario, self.results / directory_name(item.scenario), self.facts.run, item.attempt
            )
        lost.reason = f"no result: {why.strip()}"
        if item is not None and lost.results.is_dir():
            write_result(lost)
        self.record(lost.to_json())


class Front:
    """``harness run``'s part in a pytest session: its workspace, its progress, and what came of it.

    pytest's own terminal output goes nowhere; other plugins still find a reporter. What was asked for and never ran has
    a result and a place in JUnit XML all the same.

    :param shard: which of the scenarios are this run's; None for all.
    :param asked: what the run was asked for, as an earlier session collected it; of a shard, its part.
    :param refused: why some scenarios cannot run, by id; None when that is not known, and none is to run.
    """

    def __init__(
        self,
        workspace: Workspace,
        progress: Progress,
        shard: Shard | None = None,
        asked: Sequence[Asked] = (),
        refused: Mapping[str, HarnessError] | None = None,
    ) -> None:
        self.workspace = workspace
        self.progress = progress
        self.facts = RunFacts(shard=None if shard is None else shard.to_json())
        self.asked = list(asked)
        self.refused = refused or {}
        runnable = [] if refused is None else [item.scenario.id for item in asked if item.scenario.id not in refused]
        self.only = frozenset(runnable) if asked else None
        self.session: HarnessSession | None = None
        self.interrupted = refused is None and bool(asked)

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The results so far, as ``to_json`` gives them."""
        return self.session.finished if self.session else []

    @property
    def unbegun(self) -> list[dict[str, Any]]:
        """Results that say of scenarios that they were not begun."""
        return self.session.unbegun if self.session else []

    @property
    def troubles(self) -> list[HarnessError]:
        """What went wrong beside the scenarios."""
        return self.session.troubles if self.session else []

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

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Ctrl-C or SIGTERM. pytest-xdist ends a run in the same way when ``-x`` has seen enough."""
        self.interrupted = not str(excinfo.value).startswith("stopping after")

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
        """Tell of what never ran, before the summary and JUnit XML are written."""
        self._tell_unrun(session, exitstatus)
        yield

    def _tell_unrun(self, session: pytest.Session, exitstatus: int) -> None:
        mine = self.session
        if mine is None or session.config.option.collectonly:
            return
        known = {(item["id"], item["attempt"]) for item in mine.finished}
        cut_short = self.interrupted or exitstatus == pytest.ExitCode.INTERNAL_ERROR
        for item in self.asked:
            error = self.refused.get(item.scenario.id)
            if (item.scenario.id, item.attempt) in known or (error is None and not cut_short):
                continue
            begun = error is not None or item.node in mine.begun
            if error is None and begun:  # a worker's, which tells the rest where its logs are
                directory = mine.results / directory_name(item.scenario)
                result = blank_result(item.scenario, directory, mine.facts.run, item.attempt)
                result.reason = "interrupted while a worker ran it"
            else:
                why = error or HostError("the run was interrupted, or broke, before this began")
                result = unrun_result(item.scenario, item.attempt, mine.results, mine.facts.run, why)
            report = error_report(item.node, item.location, result)
            report.harness_begun = begun  # type: ignore[attr-defined]
            session.config.hook.pytest_runtest_logreport(report=report)


def error_report(node: str, location: tuple[str, int | None, str], result: ScenarioResult) -> pytest.TestReport:
    """pytest's report of a scenario of which it makes none."""
    told = [("results", str(result.results))]
    report = pytest.TestReport(node, location, {}, "failed", result.reason, "setup", user_properties=told)
    report.harness_result = result.to_json()  # type: ignore[attr-defined]
    return report
