"""Results of scenarios that were asked for and never ran.

Whatever ends a run, who asked for it finds something of each scenario: an ERROR that says why, in a
directory of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness import strict_yaml
from harness.errors import HarnessError
from harness.result import ScenarioResult, Verdict, write_json
from harness.result_files import new_directory, unwritable
from harness.scenario.model import Scenario


@dataclass(frozen=True, slots=True)
class Asked:
    """A scenario that a run was asked for; one attempt at it, where several were.

    :param node: what pytest calls it.
    :param location: where it stands, as pytest tells it.
    """

    node: str
    location: tuple[str, int | None, str]
    scenario: Scenario
    attempt: int


def blank_result(scenario: Scenario, results: Path, run: str, attempt: int = 1) -> ScenarioResult:
    """The result of a scenario that nothing has come of yet: an ERROR until something does."""
    file = scenario.path.absolute()
    return ScenarioResult(
        id=scenario.id,
        title=scenario.title,
        feature=scenario.feature,
        tags=scenario.tags,
        matrix=dict(scenario.matrix),
        results=results,
        assertions=len(scenario.assertions),
        run=run,
        attempt=attempt,
        file=str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file),
        machine=scenario.boot.machine,
        scenario_sha256=scenario.sha256,
    )


def directory_name(scenario: Scenario) -> str:
    """What the directory of a scenario's results is called, if no earlier one is."""
    return scenario.id.replace("/", "-")


def opened(result: ScenarioResult, scenario: Scenario, name: str) -> bool:
    """Give a result its directory, beside the one it names.

    :return: whether that could be; else the result says why not.
    """
    try:
        result.results = new_directory(result.results.parent, name)
        (result.results / "scenario.yaml").write_text(strict_yaml.dump(dict(scenario.resolved)), encoding="utf-8")
    except OSError as error:
        result.reason = unwritable(result.results, error)
        return False
    return True


def write_result(result: ScenarioResult) -> None:
    """Write ``evidence.json`` and ``result.json``; where they cannot be, the result says so."""
    for name, value in (("evidence.json", result.evidence), ("result.json", result.to_file())):
        try:
            write_json(result.results / name, value)
        except OSError as error:
            (result.results / f".{name}.tmp").unlink(missing_ok=True)
            result.verdict, result.reason = Verdict.ERROR, unwritable(result.results, error)


def unrun_result(scenario: Scenario, attempt: int, root: Path, run: str, why: HarnessError) -> ScenarioResult:
    """Write what there is to say of a scenario that did not run, and give it.

    What a build printed is in ``build.log`` beside it.

    :param root: the directory that each scenario has its own in.
    """
    name = directory_name(scenario)
    result = blank_result(scenario, root / name, run, attempt)
    result.reason = why.explain()
    if not opened(result, scenario, name):
        result.reason = f"{why.explain()}\n  and {result.reason}"
        return result
    if output := getattr(why, "output", ()) or why.tail:
        _write_log(result.results / "build.log", output)
    write_result(result)
    return result


def _write_log(path: Path, output: Sequence[str]) -> None:
    with suppress(OSError):  # the disk is full, which the result is about to tell
        path.write_text("\n".join(output) + "\n", encoding="utf-8")
