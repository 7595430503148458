"""Measuring in turns, medians, the table and the plot."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CalledProcessError

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from harness.errors import HarnessError

Measured = dict[str, list[float]]


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> Measured:
    """What each side measures, in turns, so that the host's load is the same to all.

    One that fails is told of, and leaves its side one measurement less.
    """
    measured: Measured = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            try:
                measured[name].append(round(measure(), 3))
            except (HarnessError, CalledProcessError) as error:
                print(f"  {name} failed: {error}", flush=True)
    return {name: values for name, values in measured.items() if values}


def show(name: str, measured: Mapping[str, Sequence[float]]) -> None:
    """One line: the medians of one machine or program."""
    medians = ", ".join(f"{side} {statistics.median(values):.2f} s" for side, values in measured.items() if values)
    print(f"  {name}: {medians}", flush=True)


def plot(target: Path, boots: Mapping[str, Measured], processes: Measured, nth: Mapping[str, float]) -> None:
    """Write the plot: machines by side, whole programs, and the N-th scenario on one saved machine."""
    figure, axes = pyplot.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    sides = list(next(iter(boots.values()), {}))
    width = 0.8 / max(1, len(sides))
    for index, side in enumerate(sides):
        medians = [statistics.median(measured.get(side, [0.0])) for measured in boots.values()]
        places = [place + index * width for place in range(len(boots))]
        axes[0].bar(places, medians, width, label=side)
    axes[0].set_xticks([place + 0.4 - width / 2 for place in range(len(boots))], list(boots))
    axes[0].set_title("QEMU's start to the first command")
    axes[0].legend()
    known = {name: statistics.median(values) for name, values in processes.items() if values}
    axes[1].barh(list(known), list(known.values()))
    axes[1].set_title("whole process: start, run true, exit")
    axes[2].bar(list(nth), list(nth.values()))
    axes[2].set_title("the N-th scenario on one saved machine")
    for axis in (axes[0], axes[2]):
        axis.set_ylabel("seconds")
    axes[1].set_xlabel("seconds")
    figure.savefig(target)
    pyplot.close(figure)
