"""A scenario in, a result out: the phases in order, evidence per step, every assertion judged."""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from harness.deadline import Deadline, DeadlineExceeded
from harness.errors import GuestCrash, GuestError, HarnessError, HostError, Unsupported
from harness.images import Images
from harness.images.under_test import Override
from harness.interrupts import interrupts_deferred
from harness.known_failure import apply_known_failures
from harness.machine.accel import Accelerator
from harness.machine.health import ProvokedCrash
from harness.machine.saved import SavedMachines
from harness.machine.spec import Profile
from harness.oops import Blame, Report
from harness.result import Crash, FailedAssertion, ScenarioResult, StepRecord, Verdict
from harness.result_files import free_space
from harness.scenario.model import Scenario, Step
from harness.steps.base import Context, Verb
from harness.testbed import Testbed
from harness.under_test import components_of, recorded
from harness.unrun import blank_result, directory_name, opened, write_result

#: Of an unexpected exception's text, shown in the reason; the whole of it is in its file.
_SAID_CHARS = 400
#: Kept consoles are shown in failures up to this many lines.
_CRASH_LINES = 200
_IMPOSSIBLE = "with flags that no processor can have: QEMU has emulated it wrongly"
_ALWAYS_KEPT = ("result.json", "evidence.json", "scenario.yaml")


class Interrupted(KeyboardInterrupt):
    """A run was cut short by Ctrl-C or a signal.

    :param result: what came of the scenario that was running.
    """

    def __init__(self, result: ScenarioResult) -> None:
        super().__init__(result.reason)
        self.result = result


class Observer(Protocol):
    """Who is told how a run goes."""

    def phase(self, scenario: Scenario, phase: str) -> None:
        """A scenario entered a phase: ``build``, ``wait``, ``boot``, ``load``, ``drive``, ``assert``, ``teardown``."""

    def step(self, scenario: Scenario, number: int, step: Step) -> None:
        """A step of ``drive`` begins; numbers count from 1."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How scenarios are run, the same for all of a session.

    :param accelerator: gives the accelerator for a guest of an architecture.
    :param results: directory under which each scenario gets one of its own.
    :param saved: saved machines that scenarios go on from; None boots each cold.
    :param keep: whose logs stay; results and evidence always do.
    :param run: what results call this run of the harness.
    :param fail_fast: end a scenario at the first assertion that its evidence so far refutes; the others stay unjudged.
    """

    images: Images
    profiles: Mapping[str, Profile]
    verbs: Mapping[str, Verb]
    accelerator: Callable[[str], Accelerator]
    results: Path
    saved: SavedMachines | None = None
    overrides: Mapping[str, Override] = field(default_factory=dict)
    keep: Literal["never", "failed", "always"] = "always"
    run: str = ""
    fail_fast: bool = False


class Runner:
    """Runs scenarios one at a time."""

    def __init__(self, settings: Settings, observer: Observer) -> None:
        self._settings = settings
        self._observer = observer

    def run(self, scenario: Scenario, attempt: int = 1) -> ScenarioResult:
        """Run a scenario and give its result; never raises for what the scenario or the host does wrong.

        A fault of the host that may pass (QEMU killed from outside, say) gets one more try, and the result
        says so. A product's failure never does.

        :param attempt: which run of this scenario it is, where several are asked for.
        :raises Interrupted: Ctrl-C or SIGTERM; the machine is gone and the result written all the same.
        """
        result = self._attempt(scenario, attempt, None)
        if result.verdict is Verdict.ERROR and result.retried is not None:
            result = self._attempt(scenario, attempt, result.retried)
        if self._settings.keep == "never" or (self._settings.keep == "failed" and result.verdict is Verdict.PASS):
            for path in result.results.iterdir():
                if path.name not in _ALWAYS_KEPT:
                    path.unlink()
        return result

    def _attempt(self, scenario: Scenario, attempt: int, retried: str | None) -> ScenarioResult:
        name = directory_name(scenario) + ("" if retried is None else "-retry")
        result = blank_result(scenario, self._settings.results / name, self._settings.run, attempt)
        if not opened(result, scenario, name):
            return result
        _Run(scenario, result, self._settings, self._observer, retried).go()
        return result


class _Run:
    """One attempt at one scenario."""

    def __init__(
        self,
        scenario: Scenario,
        result: ScenarioResult,
        settings: Settings,
        observer: Observer,
        retried: str | None,
    ) -> None:
        self._scenario = scenario
        self._result = result
        self._settings = settings
        self._observer = observer
        self._retried = retried
        self._started = time.monotonic()
        self._failed_in = ""
        self._judged = False
        self._impossible = ""

    def go(self) -> None:
        """Run it, and write what came of it.

        :raises Interrupted: see :meth:`Runner.run`.
        """
        testbed: Testbed | None = None
        interrupted = False
        try:
            testbed = self._open_testbed()
            with testbed:
                try:
                    self._phases(testbed)
                finally:
                    with interrupts_deferred():
                        self._gather(testbed)
                        with self._phase("teardown"):
                            testbed.close()
        except KeyboardInterrupt as error:
            interrupted = True
            self._cut_short(error)
        except HarnessError as error:
            self._blame(error)
        except OSError as error:
            self._blame(self._host_failed(error))
        except Exception as error:  # a bug of the harness must be an ERROR like any other, with a result
            self._blame(self._harness_failed(error))
        try:
            with interrupts_deferred():
                self._conclude(testbed)
        except KeyboardInterrupt:
            interrupted = True
        if interrupted:
            raise Interrupted(self._result)

    def _conclude(self, testbed: Testbed | None) -> None:
        result = self._result
        apply_known_failures(self._scenario, result)
        if self._impossible:
            result.distrust(self._impossible)
        if testbed is not None and (left := testbed.leftovers()):
            result.add_host_fault(f"left behind on the host: {', '.join(left)}")
        result.retried = self._retried or result.retried
        result.seconds.total = time.monotonic() - self._started
        write_result(result)

    def _cut_short(self, error: KeyboardInterrupt) -> None:
        """Ctrl-C or a signal: an ERROR, unless it came after the verdict."""
        result = self._result
        story = f"interrupted{f' by {error}' if str(error) else ''} during {self._failed_in or 'build'}"
        if self._crashed_by_product():
            result.reason += f"\n  {story}"
        elif not self._judged:
            result.verdict, result.reason = Verdict.ERROR, story

    def _host_failed(self, error: OSError) -> HostError:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return HostError(f"the host failed: {error}")
        return HostError(f"no space left on a disk: {error}", hint=free_space(self._result.results))

    def _harness_failed(self, error: Exception) -> HarnessError:
        log = self._result.results / "traceback.txt"
        with suppress(OSError):
            log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        said = " ".join(str(error).split())[:_SAID_CHARS]
        return HarnessError(
            f"the harness itself failed during {self._failed_in or 'build'}: {type(error).__name__}: {said}",
            log=log,
            hint="this is a bug of the harness, or of a package that brings verbs: report it with that file",
        )

    def _open_testbed(self) -> Testbed:
        profile = self._settings.profiles[self._scenario.boot.machine]
        accelerator = self._settings.accelerator(profile.arch)
        self._result.accel = {"used": accelerator.name, "why": accelerator.why}
        used = components_of(self._scenario, profile)
        overrides = {name: item for name, item in self._settings.overrides.items() if name in used}
        return Testbed(
            self._scenario,
            profile,
            self._settings.images,
            accelerator,
            self._result.results,
            overrides,
            self._settings.saved,
        )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._observer.phase(self._scenario, name)
        started = time.monotonic()
        try:
            yield
        except BaseException:
            self._failed_in = self._failed_in or name
            raise
        finally:
            field_name = "judge" if name == "assert" else name
            setattr(self._result.seconds, field_name, time.monotonic() - started)

    def _phases(self, testbed: Testbed) -> None:
        with self._phase("build"):
            testbed.prepare()
            self._result.under_test = [recorded(tested) for tested in testbed.tested]
        started = time.monotonic()
        testbed.await_room(lambda: self._observer.phase(self._scenario, "wait"))
        self._result.seconds.wait = time.monotonic() - started
        with self._phase("boot"), explained(testbed):
            testbed.boot()
        self._result.start = testbed.start
        with self._phase("load"), explained(testbed):
            loaded = testbed.load()
        for module in loaded:
            self._result.versions[f"module {module.module}"] = module.build_id or "loaded"
        timeout_s = self._scenario.timeout_s * testbed.machine.time_factor
        context = Context(testbed, Deadline.after(timeout_s, f"the scenario ({timeout_s:.0f} s)"))
        with self._phase("drive"), context:
            for number, step in enumerate(self._scenario.drive, 1):
                self._observer.step(self._scenario, number, step)
                try:
                    with explained(testbed, f"in {step.key} (line {step.line})"):
                        self._drive(context, step)
                except ProvokedCrash as end:
                    self._accept(end, step, last=number == len(self._scenario.drive))
                if self._settings.fail_fast and self._refuted(so_far=True):
                    break
        with self._phase("assert"):
            self._judge()

    def _drive(self, context: Context, step: Step) -> None:
        context.deadline.check()
        started = time.monotonic()
        evidence: Mapping[str, Any] | None = None
        try:
            seen = self._settings.verbs[step.verb.name].run(context, step.params)
            evidence = None if seen is None else seen.model_dump(mode="json")
            if step.name is not None and evidence is not None:
                self._result.evidence[step.name] = evidence
        finally:
            seconds = round(time.monotonic() - started, 3)
            self._result.steps.append(StepRecord(step.verb.name, step.name, seconds, evidence))
        context.testbed.machine.check()

    def _accept(self, end: ProvokedCrash, step: Step, *, last: bool) -> None:
        """Let the machine end as the scenario intends. Nothing can be done with it, or told of that step, any more.

        :raises ProvokedCrash: when the scenario wants either.
        """
        used = {name for assertion in self._scenario.assertions for name in assertion.roots}
        if not last:
            end.hint = "the step that ends the machine must be the last one"
            raise end
        if step.name in used and step.name not in self._result.evidence:
            end.hint = f"a step that ends the machine leaves no evidence: nothing can be asserted on {step.name}"
            raise end

    def _refuted(self, *, so_far: bool) -> list[FailedAssertion]:
        """The assertions that do not hold: of all, or of those whose evidence is there."""
        evidence = self._result.evidence
        judged = [item for item in self._scenario.assertions if not so_far or set(item.roots) <= set(evidence)]
        verdicts = [item.judge(evidence) for item in judged]
        return [FailedAssertion(item.expression, item.values, item.error) for item in verdicts if not item.holds]

    def _judge(self) -> None:
        result = self._result
        early = self._refuted(so_far=True) if self._settings.fail_fast else []
        result.failed_assertions += early or self._refuted(so_far=False)
        result.verdict = Verdict.FAIL if result.failed_assertions else Verdict.PASS
        self._judged = True
        if result.failed_assertions:
            count = len(result.failed_assertions)
            result.reason = (
                f"{count} of {result.assertions} assertions failed: {result.failed_assertions[0].expression}"
            )

    def _gather(self, testbed: Testbed) -> None:
        """What the consoles say, whatever came of the scenario: kill first, look afterwards."""
        testbed.stop()
        result = self._result
        result.versions.update(testbed.versions)
        timings = testbed.timings
        result.seconds.boot, result.seconds.first_command = timings.ready, timings.first_command
        for report in testbed.crashes():
            result.crashes.append(_crash(report))
            if report.blame is Blame.EMULATOR:
                self._impossible = f"{report.layer}: {report.title}, {_IMPOSSIBLE}"
            elif report.blame is Blame.PRODUCT and result.verdict is not Verdict.FAIL:
                result.verdict, result.reason = Verdict.FAIL, f"{report.layer}: {report.title}"

    def _blame(self, error: HarnessError) -> None:
        """Turn what was raised into a verdict. A crash on a console outweighs what it led to."""
        result = self._result
        story = "\n".join([error.explain(), *(f"  {note}" for note in getattr(error, "__notes__", ()))])
        if isinstance(error, Unsupported) and not self._crashed_by_product():
            result.verdict, result.reason = Verdict.SKIP, story
        elif isinstance(error, GuestCrash):
            result.verdict, result.reason = Verdict.FAIL, story
        elif isinstance(error, GuestError | DeadlineExceeded) and self._crashed_by_product():
            result.verdict, result.reason = Verdict.FAIL, f"{result.reason}\n  which led to: {story}"
        else:
            result.verdict, result.reason = Verdict.ERROR, story
            if isinstance(error, HostError) and error.may_pass:
                result.retried = error.message

    def _crashed_by_product(self) -> bool:
        return bool(self._result.crashes) and self._result.verdict is Verdict.FAIL


@contextmanager
def explained(testbed: Testbed, where: str | None = None) -> Iterator[None]:
    """Let an error say what is behind it, and where it came up."""
    try:
        yield
    except HarnessError as error:
        cause = testbed.machine.explain(error)
        if where is not None:
            cause.add_note(where)
        if cause is error:
            raise
        raise cause from error


def _crash(report: Report) -> Crash:
    return Crash(report.layer, report.title, str(report.severity), report.text[:_CRASH_LINES])
