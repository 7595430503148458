"""Puts the page together and writes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.oops import sanitize
from harness.records.history import History, Point
from harness.records.read import ReadScenario, ReadSummary
from harness.records.trend import Flake, by_accelerator, changes, flakes
from harness.report.page.plots import runs_plot, seconds_plot, sparkline
from harness.report.page.view import ScenarioView, budgets, shown_value, versions_of, view
from harness.result import Verdict

_ORDER = (Verdict.FAIL, Verdict.ERROR, Verdict.PASS, Verdict.SKIP)
#: Of each scenario's history, so much is looked at.
_HISTORY = 40
#: Scenarios with a plot of their own, and failures that are open from the start.
_PLOTTED = 8
_OPENED = 40


@dataclass(frozen=True, slots=True)
class Feature:
    """The scenarios of one feature.

    :param cells: for each machine, how many of each verdict.
    """

    name: str
    scenarios: Sequence[ScenarioView]
    cells: Mapping[str, list[tuple[str, int]]]


@dataclass(slots=True)
class Trends:
    """What the history adds.

    :param scenarios: those with news: name, accelerator, plot, and the news in words.
    """

    runs: Markup | None = None
    scenarios: list[tuple[str, str, Markup, list[str]]] = field(default_factory=list)
    sparks: dict[str, Markup | None] = field(default_factory=dict)
    flaky: list[Flake] = field(default_factory=list)


def write_page(
    target: Path, scenarios: Sequence[ReadScenario], summaries: Sequence[ReadSummary], history: History | None
) -> Path:
    """Write ``index.html``.

    :param target: a directory; made where it is not there.
    :param summaries: those that the scenarios came from, as far as they came from any.
    :raises UsageError, HostError: the history cannot be read.
    :raises OSError: the page cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    room = budgets(scenarios)
    ordered = sorted(scenarios, key=lambda item: (item.feature, _ORDER.index(item.verdict), item.id, item.attempt))
    views = [view(number, item, room[item.verdict], target) for number, item in enumerate(ordered)]
    trends = _trends(scenarios, history) if history is not None else Trends()
    bad = [item for item in views if item.told.verdict in (Verdict.FAIL, Verdict.ERROR)]
    opened = {item.anchor for item in bad[:_OPENED]}
    page = _template().render(
        headline=_headline(scenarios),
        runs=[_run_line(item) for item in summaries],
        css=Markup(_source("page.css")),  # noqa: S704 (ours)
        machines=sorted({item.machine for item in views}),
        features=_features(views),
        bad=sorted(bad, key=lambda item: _ORDER.index(item.told.verdict)),
        trends=trends,
        sparks={item.id: trends.sparks.get(item.id) for item in scenarios},
        flaky=trends.flaky,
        versions=versions_of(scenarios),
        opened=lambda item: item.anchor in opened,
        **_helpers(),
    )
    file = target / "index.html"
    temporary = target / ".index.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(file)
    return file


def _source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("harness.report.page", "."), autoescape=True, undefined=StrictUndefined, finalize=_finished
    )
    return environment.get_template("page.html.j2")


def _finished(value: Any) -> Any:
    """What guests say is shown without what would make a terminal act, wherever on the page it comes."""
    return sanitize(value) if type(value) is str else value


def _helpers() -> dict[str, Callable[..., str]]:
    return {
        "first_line": lambda text: sanitize(text).partition("\n")[0][:300],
        "seconds": lambda value: f"{value:.1f} s",
        "percent": lambda value: f"{value:.1%}",
        "value_of": shown_value,
    }


def _headline(scenarios: Sequence[ReadScenario]) -> str:
    counts = Counter(item.verdict for item in scenarios)
    words = {Verdict.FAIL: "failed", Verdict.ERROR: "errors", Verdict.PASS: "passed", Verdict.SKIP: "skipped"}
    return ", ".join(f"{counts[verdict]} {words[verdict]}" for verdict in _ORDER if counts[verdict]) or "nothing ran"


def _run_line(summary: ReadSummary) -> str:
    host = ", ".join(f"{name} {value}" for name, value in summary.host.items())
    shard = f"shard {summary.shard.index} of {summary.shard.count}, " if summary.shard else ""
    return (
        f"run {summary.run[:8]}, {shard}{summary.started:%Y-%m-%d %H:%M:%S %Z} to {summary.finished:%H:%M:%S}, "
        f"harness {summary.harness}, {summary.accel.used} ({summary.accel.why}); {sanitize(host)}"
    )


def _features(views: Sequence[ScenarioView]) -> list[Feature]:
    machines = {item.machine for item in views}
    features = []
    for name in sorted({item.told.feature for item in views}):
        mine = [item for item in views if item.told.feature == name]
        cells = {
            machine: [
                (str(verdict), count)
                for verdict in _ORDER
                if (count := sum(item.machine == machine and item.told.verdict is verdict for item in mine))
            ]
            for machine in machines
        }
        features.append(Feature(name or "unknown", mine, cells))
    return features


def _trends(scenarios: Sequence[ReadScenario], history: History) -> Trends:
    points = history.points(last=_HISTORY)
    by_scenario: dict[str, list[Point]] = {}
    for point in points:
        by_scenario.setdefault(point.scenario, []).append(point)
    mine = {item.id: item.verdict for item in scenarios}
    trends = Trends(runs_plot([point for point in points if point.scenario in mine]))
    for name in mine:
        trends.sparks[name] = sparkline(by_scenario.get(name, []))
    suspects = [name for name in mine if len({point.verdict for point in by_scenario.get(name, ())}) > 1]
    steady = [name for name in mine if name not in suspects]
    suspects.sort(key=lambda name: _ORDER.index(mine[name]))
    for name in [*suspects[: 10 * _PLOTTED], *steady[:_PLOTTED]]:
        outcomes = history.outcomes(name, last=_HISTORY)
        trends.flaky += flakes(outcomes)
        for accel, group in by_accelerator(outcomes).items():
            news = [_news(item.what, item.before, item.after, item.first.run) for item in changes(group)]
            under = [point for point in by_scenario[name] if point.accel == accel]
            if len(under) > 1 and len(trends.scenarios) < _PLOTTED and (news or len(mine) <= _PLOTTED):
                trends.scenarios.append((name, accel, seconds_plot(under), news))
    return trends


def _news(what: str, before: str, after: str, run: str) -> str:
    return f"{what}: {before[:24]} to {after[:24]} since run {run[:8]}"
