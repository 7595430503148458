"""Scenarios run one at a time with code under test, by a program that goes on from what each came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.images.under_test import Override
from harness.machine.accel import Request
from harness.result import ScenarioResult
from harness.runner import Observer, Runner, Settings
from harness.scenario.model import Scenario
from harness.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Trials:
    """How such scenarios run.

    :param observer: is told of phases and steps.
    :param keep: whose logs stay; see :class:`harness.runner.Settings`, also for ``fail_fast``.
    """

    workspace: Workspace
    accel: Request
    observer: Observer
    keep: Literal["failed", "always"] = "always"
    fail_fast: bool = False

    def prepare(self, scenario: Scenario, overrides: Mapping[str, Override]) -> None:
        """Have what it boots, and what is under test; raises as :meth:`run`."""
        for error in self.workspace.prepare([scenario], overrides).values():
            raise error

    def run(self, scenario: Scenario, overrides: Mapping[str, Override], results: Path) -> ScenarioResult:
        """Run one.

        :param results: the directory under which it gets one of its own.
        :raises HarnessError: what it boots, or what is under test, cannot be had.
        :raises Interrupted: see :meth:`harness.runner.Runner.run`.
        """
        workspace = self.workspace
        self.prepare(scenario, overrides)
        settings = Settings(
            images=workspace.images,
            profiles=workspace.profiles,
            verbs=workspace.verbs,
            accelerator=lambda arch: workspace.accelerator(self.accel, arch),
            results=results,
            saved=workspace.saved,
            overrides=overrides,
            keep=self.keep,
            fail_fast=self.fail_fast,
        )
        return Runner(settings, self.observer).run(scenario)
