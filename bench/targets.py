"""What the harness may take, and whether it does: limits on medians of one run of the bench."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.figures import Measured

#: What the harness may add to the plain script: a share of a cold start, seconds of a warm one.
COLD_SHARE = 0.05
WARM_S = 0.4
#: Seconds from QEMU's start to the first command of a saved machine, on 2 cores under TCG.
FIRST_COMMAND_S = {"pc": 1.0, "virt": 1.0, "pseries": 1.0, "xen-arm64": 1.6, "xen-x86": 5.0, "xen-x86-vtd": 5.0}
#: A whole process that runs `true`, warm, and how many times sooner than a peer it ends.
WHOLE_S = 2.0
TIMES_SOONER = {"labgrid": 4.0, "virtme-ng": 7.0}
#: The whole catalogue's warm time as a share of its cold one.
CATALOGUE_SHARE = 0.35
HARNESS = "harness run, warm"


@dataclass(frozen=True, slots=True)
class Target:
    """One limit.

    :param most: the value may be so much; for a target that asks for at least so much, see ``least``.
    :param binding: missing it fails the bench: it compares two things of one host, and does not depend on its speed.
    """

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None
    binding: bool = False

    @property
    def met(self) -> bool:
        """Whether the value keeps to its limit."""
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    def __str__(self) -> str:
        limit = f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"
        return f"{'met' if self.met else 'MISSED'}: {self.name}: {self.value:.2f}{self.unit} ({limit}{self.unit})"

    def to_json(self) -> dict[str, Any]:
        """A plain object."""
        return {
            "name": self.name,
            "value": round(self.value, 3),
            "most": self.most,
            "least": self.least,
            "met": self.met,
        }


def of_boots(boots: Mapping[str, Measured]) -> Iterator[Target]:
    """What the harness adds to the plain script, and what a first command takes."""
    for name, sides in boots.items():
        median = {side: statistics.median(values) for side, values in sides.items()}
        if len(median) < 4:  # one side never worked, which was told
            continue
        share = 100 * (median["harness cold"] / median["script cold"] - 1)
        added = median["harness warm"] - median["script warm"]
        yield Target(f"{name}, cold, more than the script", share, " %", most=100 * COLD_SHARE, binding=True)
        yield Target(f"{name}, warm, more than the script", added, " s", most=WARM_S, binding=True)
        if name in FIRST_COMMAND_S:
            yield Target(f"{name}, warm, first command", median["harness warm"], " s", most=FIRST_COMMAND_S[name])


def of_programs(programs: Measured) -> Iterator[Target]:
    """What a whole process takes, and how much sooner than its peers it ends."""
    median = {name: statistics.median(values) for name, values in programs.items() if values}
    if HARNESS not in median:
        return
    yield Target(HARNESS, median[HARNESS], " s", most=WHOLE_S)
    for peer, times in TIMES_SOONER.items():
        if peer in median:
            yield Target(f"{peer} against {HARNESS}", median[peer] / median[HARNESS], " times", least=times)


def of_catalogue(catalogue: Mapping[str, Any]) -> Iterator[Target]:
    """How much of the catalogue's cold time is left when its machines are saved ones."""
    for what in ("wall_s", "machine_s"):
        share = catalogue["warm"][what] / catalogue["cold"][what]
        yield Target(f"catalogue, {what}, warm / cold", share, "", most=CATALOGUE_SHARE)
