"""What many outcomes of one scenario tell: since when it is different, and whether it is a flake."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, median

from harness.records.outcome import Outcome
from harness.result import Verdict

#: A number that was the same so often and is another now has changed; one that varies needs statistics.
_STEADY = 5
#: Fewer values than this say nothing of a shift.
_LEAST_FOR_SHIFT = 8
_SIGNIFICANT = 0.01
#: A shift of timings that nobody would notice is none.
_LEAST_SHIFT = 0.1
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is not as it was.

    :param what: ``verdict``, a component, ``seconds.drive``, or a number of the evidence.
    :param first: the first outcome after which it is as it is now.
    """

    what: str
    before: str
    after: str
    first: Outcome


@dataclass(frozen=True, slots=True)
class Flake:
    """Outcomes of one scenario with the very same components under the same accelerator.

    :param rate: of failures among those that passed or failed.
    :param low: the interval that holds the true rate with 95 % confidence, as Wilson gives it.
    :param errors: faults of the host or the harness, which say nothing of the product.
    """

    scenario: str
    accel: str
    components_sha256: str
    passed: int
    failed: int
    errors: int
    rate: float
    low: float
    high: float

    @property
    def flaky(self) -> bool:
        """The same code did both."""
        return self.passed > 0 and self.failed > 0


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The interval that holds a rate with 95 % confidence when ``hits`` of ``trials`` were seen (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2)
    rate = hits / trials
    middle = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def repeats(outcomes: Iterable[Outcome]) -> list[Flake]:
    """Outcomes by scenario, accelerator and components, each group counted; skips count for nothing."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for item in outcomes:
        if item.verdict is not Verdict.SKIP:
            groups.setdefault((item.id, item.accel, item.components_sha256), []).append(item)
    return [_counted(*key, group) for key, group in groups.items()]


def flakes(outcomes: Iterable[Outcome]) -> list[Flake]:
    """Those of :func:`repeats` in which the same code both passed and failed."""
    return [item for item in repeats(outcomes) if item.flaky]


def _counted(scenario: str, accel: str, components: str, group: Sequence[Outcome]) -> Flake:
    passed, failed, errors = (
        sum(item.verdict is verdict for item in group) for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.ERROR)
    )
    judged = passed + failed
    return Flake(
        scenario, accel, components, passed, failed, errors, failed / judged if judged else 0.0, *wilson(failed, judged)
    )


def changes(outcomes: Sequence[Outcome]) -> list[Change]:
    """What is not as it was in one scenario's outcomes under one accelerator, and since which of them.

    The latest change of the verdict and of each component; each number of the evidence that had been steady, or whose
    level has shifted; and timings whose level has.

    :param outcomes: oldest first.
    """
    found = _last_change("verdict", [(item, str(item.verdict)) for item in outcomes])
    # A verdict that is the product's is what an outcome says of components; an error may have come before they were.
    judged = [item for item in outcomes if item.verdict in (Verdict.PASS, Verdict.FAIL)]
    for name in sorted({name for item in judged for name in item.components}):
        found += _last_change(name, [(item, item.components.get(name, "none")) for item in judged])
    for name in sorted({name for item in judged for name in item.numbers}):
        found += _number_change(name, [(item, item.numbers[name]) for item in judged if name in item.numbers])
    warm = [item for item in judged if judged and item.start == judged[-1].start]
    for phase in sorted({phase for item in warm for phase in item.seconds}):
        series = [(item, item.seconds[phase]) for item in warm if phase in item.seconds]
        found += _shift(f"seconds.{phase}", series)
    return found


def _last_change(what: str, series: Sequence[tuple[Outcome, str]]) -> list[Change]:
    for (_, before), (item, after) in reversed(list(pairwise(series))):
        if before != after:
            return [Change(what, before, after, item)]
    return []


def _number_change(what: str, series: Sequence[tuple[Outcome, float]]) -> list[Change]:
    values = [value for _, value in series]
    position = next((index for index in range(len(values) - 1, 0, -1) if values[index] != values[index - 1]), 0)
    before, after = values[:position], values[position:]
    if len(before) >= _STEADY and len(set(before)) == 1 and len(set(after)) == 1:
        return [Change(what, f"{before[0]:g}", f"{after[0]:g}", series[position][0])]
    # A step's own seconds are timings, whose noise is not news.
    return _shift(what, series)


def _shift(what: str, series: Sequence[tuple[Outcome, float]]) -> list[Change]:
    values = [value for _, value in series]
    position = shift(values)
    if position is None:
        return []
    before, after = median(values[:position]), median(values[position:])
    if abs(after - before) < _LEAST_SHIFT * max(abs(before), abs(after)):
        return []
    return [Change(what, f"{before:.4g}", f"{after:.4g}", series[position][0])]


def shift(values: Sequence[float]) -> int | None:
    """The index from which on values are on another level, or None; Pettitt's test (Applied Statistics 28, 1979).

    It ranks values, so that no distribution is assumed, and a single stray one moves nothing.
    """
    count = len(values)
    if count < _LEAST_FOR_SHIFT:
        return None
    statistics: list[int] = []
    running = 0
    for value in values[:-1]:
        running += sum((value > other) - (value < other) for other in values)
        statistics.append(running)
    position = max(range(len(statistics)), key=lambda index: abs(statistics[index]))
    strength = abs(statistics[position])
    chance = 2 * math.exp(-6 * strength**2 / (count**3 + count**2))
    return position + 1 if chance < _SIGNIFICANT else None


def by_accelerator(outcomes: Iterable[Outcome]) -> Mapping[str, list[Outcome]]:
    """Outcomes by what they ran under: timings of one say nothing of another."""
    groups: dict[str, list[Outcome]] = {}
    for item in outcomes:
        groups.setdefault(item.accel, []).append(item)
    return groups
