"""The page: escaped, complete, self-contained, and small and quick for a thousand scenarios."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.commands.report import gather
from harness.errors import ScenarioError, UsageError
from harness.records.history import History
from harness.records.outcome import Outcome
from harness.records.read import ReadScenario
from harness.report.page.view import Budget, view
from harness.report.page.write import write_page
from harness.result import Crash, FailedAssertion, StepRecord, Verdict
from tests.unit.records import outcome, result, summary, write

EVIL = "<script>alert(1)</script>\x1b[31m\"'>&<b>"
CRASH = ("[  3.1] BUG: unable to handle page fault", "[  3.1] Call Trace:", "[  3.2]  balloon_page_dequeue+0x1")


def read(value: dict[str, Any]) -> ReadScenario:
    return ReadScenario.model_validate_json(json.dumps(value, default=str))


class Seen(HTMLParser):
    """What a browser would find: elements, ids, links, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.events: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "srcset", "data", "action") or (name == "href" and not (value or "#").startswith("#")):
                self.loads.append(f"{tag} {name}={value}")
            elif name.startswith("on"):
                self.events.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(tmp_path: Path, *values: dict[str, Any], history: History | None = None) -> tuple[str, Seen]:
    file = write_page(tmp_path / "page", [read(value) for value in values], [], history)
    text = file.read_text()
    return text, Seen(text)


@pytest.fixture
def crashed(tmp_path: Path) -> dict[str, Any]:
    """A failure with its logs: a console that prints HTML, crashes, and goes on for long."""
    directory = tmp_path / "results" / "balloon-crash[pc]"
    directory.mkdir(parents=True)
    before = [f"[  1.{number}] boot line {number}" for number in range(3000)]
    after = [f"[  4.{number}] after {number}" for number in range(3000)]
    lines = [*before, EVIL, *CRASH, *after]
    (directory / "console-guest.log").write_text("\r\n".join(lines))
    (directory / "qemu.argv").write_text(f"qemu-system-x86_64 -name '{EVIL}'")
    return result(
        verdict=Verdict.FAIL,
        id=f"balloon/crash[{EVIL}]",
        title=EVIL,
        reason=f"guest: BUG {EVIL}",
        results=directory,
        failed_assertions=[FailedAssertion("a < b && c", {"a": EVIL}, EVIL)],
        crashes=[
            Crash("guest", f"BUG: {EVIL}", "bug", CRASH),
            Crash("xen", "Panic", "bug", ("(XEN) Panic on CPU 0:",)),
        ],
        steps=[StepRecord("balloon.inflate", "up", 2.0, {}), StepRecord("guest.run", None, 1.5, None)],
        evidence={"said": EVIL},
        versions={"kernel": EVIL},
        machine="pc",
    )


def test_what_guests_and_files_say_stays_text(tmp_path: Path, crashed: dict[str, Any]) -> None:
    text, seen = page_of(tmp_path, crashed)
    assert "script" not in seen.tags
    assert "b" not in seen.tags
    assert not seen.events
    assert "\x1b" not in text
    assert seen.text.count("<script>alert(1)</script>") >= 8


def test_nothing_is_loaded_and_every_jump_lands(tmp_path: Path, crashed: dict[str, Any]) -> None:
    text, seen = page_of(tmp_path, crashed, result(1))
    assert not seen.loads
    assert "Content-Security-Policy" in text
    assert not re.search(r"@import|url\((?!#)", text)
    inside = {link[1:] for link in seen.links if link.startswith("#")}
    assert {"s0", "s0c0", "s0c1"} <= inside <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))


def test_a_crash_is_marked_and_shown_though_the_console_is_cut(tmp_path: Path, crashed: dict[str, Any]) -> None:
    text, seen = page_of(tmp_path, crashed)
    assert f'<span class="crash" id="s0c0">{CRASH[0]}</span>' in text
    assert f'<span class="crash">{CRASH[2]}</span>' in text
    assert "boot line 2999" in seen.text
    assert "after 2999" in seen.text, "the end"
    assert "boot line 0\n" not in seen.text
    assert re.search(r"[0-9]+ lines are left out, all of it", seen.text)
    assert "../results/balloon-crash%5Bpc%5D/console-guest.log" in seen.links
    assert '<span class="crash" id="s0c1">(XEN) Panic on CPU 0:</span>' in text, "a layer whose log is gone"


def test_each_part_of_a_scenario_is_there(tmp_path: Path, crashed: dict[str, Any]) -> None:
    text, seen = page_of(tmp_path, crashed)
    for part in (
        "does not hold:",
        "a < b && c",
        "balloon.inflate as up",
        "QEMU's command line",
        "harness run",
        "harness shell --from",
        "repro.sh",
    ):
        assert part in seen.text, part
    assert 'title="drive 4.0 s"' in text


def test_logs_that_are_gone(tmp_path: Path) -> None:
    _, seen = page_of(tmp_path, result(verdict=Verdict.ERROR, reason="host: the disk is full"))
    assert "the disk is full" in seen.text
    assert "console of" not in seen.text


def test_summary_by_feature_and_machine(tmp_path: Path) -> None:
    rows = [
        result(machine="pc", id="a"),
        result(machine="pc", id="b", verdict=Verdict.FAIL),
        result(machine="virt", id="c", feature="vtd", verdict=Verdict.SKIP),
    ]
    text, seen = page_of(tmp_path, *rows)
    assert "<h1>1 failed, 1 passed, 1 skipped</h1>" in text
    assert re.search(r"balloon\s+1 fail\s*1 pass\s*\u2013\s+vtd\s+\u2013\s*1 skip", seen.text)


def test_trends_flakes_and_news_from_the_history(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite")
    past = [outcome(number, evidence={"up": {"inflated": 5 if number < 20 else 4}}) for number in range(24)]
    history.add([*past, outcome(24, Verdict.FAIL, evidence={"up": {"inflated": 4}})], {})
    text, seen = page_of(tmp_path, result(24, Verdict.FAIL), history=history)
    assert text.count('class="plot"') == 2
    assert 'class="spark"' in text
    assert "verdict: pass to fail since run run-24" in seen.text
    assert "up.inflated: 5 to 4 since run run-20" in seen.text
    assert "The same components both passed and failed" in seen.text
    assert not seen.loads


def test_no_history_no_trends(tmp_path: Path) -> None:
    _, seen = page_of(tmp_path, result(), history=History(tmp_path / "absent.sqlite"))
    assert "Trends" not in seen.text


def test_a_budget_is_kept(tmp_path: Path, crashed: dict[str, Any]) -> None:
    shown = view(0, read(crashed), Budget(1000, 100), tmp_path)
    assert sum(len(line.text) + 1 for console in shown.consoles for line in console.lines) <= 1000
    assert any(line.anchor for line in shown.consoles[0].lines)
    assert len(shown.evidence) < 160


def test_a_thousand_scenarios(tmp_path: Path) -> None:
    """The target is 5 s and 5 MB; processor time, because the machine may have other work."""
    evidence = {
        name: {f"counter_{n}": n * 1000 for n in range(20)} for name in ("before", "up", "after", "down", "pages")
    }
    steps = [StepRecord("balloon.inflate", "up", 0.5, {})] * 8
    console = "\n".join(f"[ {n}.000] a line of a boot that is as long as they are" for n in range(400)) + "\n"
    scenarios = []
    for number in range(1000):
        bad = number % 20 == 0
        directory = tmp_path / "results" / str(number)
        directory.mkdir(parents=True)
        log = console + "\n".join(CRASH) + "\n" + console if bad else console
        (directory / "console-guest.log").write_text(log)
        (directory / "qemu.argv").write_text("qemu-system-x86_64 " + "-device something,with=many,keys=here " * 30)
        scenarios.append(
            result(
                verdict=Verdict.FAIL if bad else Verdict.PASS,
                id=f"feature{number % 5}/scenario-{number}[pc]",
                feature=f"feature{number % 5}",
                crashes=[Crash("guest", CRASH[0], "bug", CRASH)] if bad else [],
                results=directory,
                evidence=evidence,
                steps=steps,
                machine="pc",
            )
        )
    history = History(tmp_path / "history.sqlite")
    read_back = [read(item) for item in scenarios]
    for number in range(20):
        history.add([Outcome.of(item.model_copy(update={"run": f"r{number}"})) for item in read_back], {})
    began = time.process_time()
    paths = [write(tmp_path / "s.json", summary(*scenarios))]
    found, summaries = gather(paths)
    file = write_page(tmp_path / "page", found, summaries, history)
    took = time.process_time() - began
    size = file.stat().st_size
    print(f"{took:.2f} s of processor time, {size / 1e6:.2f} MB")
    assert size < 5e6
    assert took < 5
    assert file.read_text().count('<details class="of-') == 1000


def test_results_directories_and_summaries_are_one_scenario(tmp_path: Path) -> None:
    directory = tmp_path / "results" / "one"
    directory.mkdir(parents=True)
    value = result(results=directory)
    write(directory / "result.json", value)
    whole = write(tmp_path / "s.json", summary(value))
    for given in ([whole, tmp_path / "results"], [directory], [tmp_path / "results", directory]):
        scenarios, _ = gather(given)
        assert [item.id for item in scenarios] == ["balloon/resize[pc]"]


def test_nothing_to_report_and_results_that_are_damaged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no results"):
        gather([tmp_path])
    (tmp_path / "result.json").write_text('{"id": "x"')
    with pytest.raises(ScenarioError, match=r"result\.json: is not JSON"):
        gather([tmp_path])
