"""Trends as SVG: what the history holds, drawn. matplotlib is imported only when there is something to draw."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from harness.records.history import Point
from harness.result import Verdict

#: Green, red, violet and ochre that are told apart without colour vision by their lightness.
COLOURS = {Verdict.PASS: "#2e8b57", Verdict.FAIL: "#c0262d", Verdict.ERROR: "#8b3fa8", Verdict.SKIP: "#b8860b"}
_MARKERS = {Verdict.PASS: "o", Verdict.FAIL: "X", Verdict.ERROR: "s", Verdict.SKIP: "v"}
_SPARK_WIDTH, _SPARK_HEIGHT = 96, 18


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second, which most reports need not spend)

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def _svg(figure: Any, label: str) -> Markup:
    """A figure as an element of the page: text stays text, and nothing in it refers to anything outside."""
    from matplotlib import rc_context  # noqa: PLC0415

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": label})
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    return Markup(text[text.index("<svg") :].replace("<svg ", '<svg role="img" class="plot" ', 1))  # noqa: S704


def runs_plot(points: Sequence[Point], last: int = 40) -> Markup | None:
    """How each run went: its verdicts, one bar on another. None for fewer than two runs."""
    runs = list(dict.fromkeys(point.run for point in points))[-last:]
    if len(runs) < 2:
        return None
    figure, axes = _axes(7.2, 2.4)
    bottom = [0] * len(runs)
    for verdict in (Verdict.PASS, Verdict.SKIP, Verdict.ERROR, Verdict.FAIL):
        counts = [sum(point.run == run and point.verdict is verdict for point in points) for run in runs]
        if any(counts):
            axes.bar(range(len(runs)), counts, bottom=bottom, color=COLOURS[verdict], label=str(verdict), width=0.85)
        bottom = [low + count for low, count in zip(bottom, counts, strict=True)]
    first = {run: next(point for point in points if point.run == run).started for run in runs}
    step = max(1, len(runs) // 6)
    axes.set_xticks(range(0, len(runs), step), [f"{first[run]:%m-%d %H:%M}" for run in runs[::step]])
    axes.set_ylabel("scenarios", fontsize=8)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=7, ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure, "verdicts by run")


def seconds_plot(points: Sequence[Point]) -> Markup:
    """How long one scenario took each time, with its verdicts as marks."""
    figure, axes = _axes(7.2, 2.0)
    axes.plot(range(len(points)), [point.total for point in points], color="#888", linewidth=0.8, zorder=1)
    for verdict, colour in COLOURS.items():
        mine = [(index, point.total) for index, point in enumerate(points) if point.verdict is verdict]
        if mine:
            places, totals = zip(*mine, strict=True)
            axes.scatter(places, totals, s=22, color=colour, marker=_MARKERS[verdict], label=str(verdict), zorder=2)
    step = max(1, len(points) // 6)
    axes.set_xticks(range(0, len(points), step), [f"{point.started:%m-%d %H:%M}" for point in points[::step]])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds", fontsize=8)
    axes.legend(fontsize=7, ncols=4, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure, "seconds by run")


def sparkline(points: Sequence[Point]) -> Markup | None:
    """The last totals in the height of a line of text, a dot for each outcome that was no pass."""
    if len(points) < 2:
        return None
    top = max(point.total for point in points) or 1.0
    places = [
        (
            round(2 + index * (_SPARK_WIDTH - 4) / (len(points) - 1), 1),
            round(_SPARK_HEIGHT - 2 - 14 * point.total / top, 1),
        )
        for index, point in enumerate(points)
    ]
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="2" fill="{COLOURS[point.verdict]}"/>'
        for (x, y), point in zip(places, points, strict=True)
        if point.verdict is not Verdict.PASS
    )
    line = " ".join(f"{x},{y}" for x, y in places)
    size = f'width="{_SPARK_WIDTH}" height="{_SPARK_HEIGHT}"'
    return Markup(  # noqa: S704 (numbers and colours of ours)
        f'<svg class="spark" {size} aria-hidden="true"><polyline points="{line}"/>{dots}</svg>'
    )
