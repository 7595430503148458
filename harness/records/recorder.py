"""What a run does with its outcomes: they go into the history, and nothing of that changes a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.records.history import History
from harness.records.outcome import Outcome
from harness.records.read import ReadScenario
from harness.result import host_facts


class Recorder:
    """Records one run's outcomes as they come.

    :param path: the history's file.
    """

    def __init__(self, path: Path) -> None:
        self._history = History(path)
        self._host = host_facts()
        self._failed = False

    def record(self, result: Mapping[str, Any]) -> str | None:
        """Record an outcome.

        :param result: as ``ScenarioResult.to_json`` gives it.
        :return: what a person must be told when that fails; once only.
        """
        if self._failed:
            return None
        try:
            scenario = ReadScenario.model_validate_json(json.dumps(result, default=str))
            self._history.add([Outcome.of(scenario)], self._host)
        except HarnessError as error:
            self._failed = True
            return f"outcomes are not recorded any more: {error.explain()}"
        return None
