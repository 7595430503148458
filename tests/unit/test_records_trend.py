"""What many outcomes tell: changes and since when, shifts of noisy timings, and flakes with their interval."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.records.outcome import Outcome, numbers_of
from harness.records.trend import changes, flakes, repeats, shift, wilson
from harness.result import Crash, FailedAssertion, Seconds, Verdict
from tests.unit.records import outcome, swapped


def with_numbers(number: int, **numbers: float) -> Outcome:
    return outcome(number, evidence={"up": numbers})


def test_the_first_run_with_another_verdict_and_what_changed_with_it() -> None:
    new = {"kernel": "6.13", "kernel_sha256": "bb" * 32}
    series = [outcome(number) for number in range(5)]
    series += [outcome(number, Verdict.FAIL, versions=new) for number in range(5, 8)]
    found = {item.what: item for item in changes(series)}
    assert (found["verdict"].before, found["verdict"].after, found["verdict"].first.run) == ("pass", "fail", "run-5")
    assert found["kernel"].after == "6.13"
    assert found["kernel_sha256"].first.run == "run-5"
    assert set(found) == {"verdict", "kernel", "kernel_sha256"}


def test_an_error_before_anything_booted_is_no_change_of_components() -> None:
    series = [outcome(0), outcome(1, Verdict.ERROR, versions={}), outcome(2)]
    assert [item.what for item in changes(series)] == ["verdict"]


def test_a_number_that_was_steady() -> None:
    series = [with_numbers(number, inflated=51200 if number < 9 else 51199) for number in range(10)]
    (found,) = changes(series)
    assert (found.what, found.before, found.after, found.first.run) == ("up.inflated", "51200", "51199", "run-9")


def test_a_number_that_always_varies_is_no_news() -> None:
    assert changes([with_numbers(number, free=number % 3) for number in range(20)]) == []


@pytest.mark.parametrize(("values", "index"), [([1.0] * 10 + [2.0] * 10, 10), ([1.0] * 30, None), ([1, 2, 3], None)])
def test_shift(values: list[float], index: int | None) -> None:
    assert shift(values) == index


def test_a_shift_is_found_through_noise_and_a_stray_value_is_none() -> None:
    noise = random.Random(1)
    before = [10 + noise.gauss(0, 0.5) for _ in range(15)]
    after = [13 + noise.gauss(0, 0.5) for _ in range(15)]
    found = shift(before + after)
    assert found is not None and 14 <= found <= 16
    assert shift([*before, 60.0, *before]) is None


def test_shift_rarely_cries_wolf() -> None:
    noise = random.Random(2)
    alarms = sum(shift([noise.gauss(10, 1) for _ in range(30)]) is not None for _ in range(300))
    assert alarms <= 9, "3 in a hundred, where 1 is asked for"


def test_timings_of_cold_and_warm_starts_are_not_compared() -> None:
    def started(number: int, start: str, drive: float) -> Outcome:
        made = outcome(number, start=start)
        return Outcome.from_json({**made.to_json(), "seconds": {"drive": drive}})

    series = [started(number, "cold", 9.0) for number in range(10)]
    series += [started(number, "warm", 1.0) for number in range(10, 20)]
    assert changes(series) == []
    series += [started(number, "warm", 2.0) for number in range(20, 30)]
    (found,) = changes(series)
    assert (found.what, found.first.run) == ("seconds.drive", "run-20")


def test_flakes_are_the_same_components_with_different_verdicts() -> None:
    same = [outcome(0), outcome(1, Verdict.FAIL), outcome(2), outcome(3, Verdict.ERROR), outcome(4, Verdict.SKIP)]
    (found,) = flakes(same)
    assert (found.passed, found.failed, found.errors) == (2, 1, 1)
    assert found.rate == pytest.approx(1 / 3)
    assert found.low < 1 / 3 < found.high


@pytest.mark.parametrize(
    "changed",
    [
        {"versions": {"kernel": "6.12", "kernel_sha256": "bb" * 32}},
        {"under_test": [swapped("virtio_balloon", "cc")]},
        {"accel": {"used": "kvm", "why": ""}},
        {"scenario_sha256": "dd" * 32},
    ],
)
def test_other_components_are_no_flake(changed: dict[str, Any]) -> None:
    assert flakes([outcome(0), outcome(1, Verdict.FAIL, **changed)]) == []
    assert len(repeats([outcome(0), outcome(1, Verdict.FAIL, **changed)])) == 2


def test_a_fault_of_the_host_makes_no_flake() -> None:
    assert flakes([outcome(0), outcome(1, Verdict.ERROR)]) == []
    (alone,) = repeats([outcome(1, Verdict.ERROR)])
    assert (alone.low, alone.high) == (0.0, 1.0)


def test_wilson() -> None:
    # (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) for p = 0.05, n = 20, z = 1.959964
    assert wilson(1, 20) == pytest.approx((0.008881, 0.236131), abs=1e-5)
    assert wilson(0, 20)[0] == pytest.approx(0.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate(seen: tuple[int, int]) -> None:
    low, high = wilson(*seen)
    assert 0 <= low <= seen[0] / seen[1] + 1e-12
    assert seen[0] / seen[1] - 1e-12 <= high <= 1


def test_what_an_outcome_keeps() -> None:
    failed = [FailedAssertion("up.inflated == 5", {"up.inflated": 4})]
    made = outcome(
        0, Verdict.FAIL, failed_assertions=failed, crashes=[Crash("guest", "BUG: x", "bug")], reason="r" * 900
    )
    assert made.problems == ("up.inflated == 5", "guest: BUG: x")
    assert len(made.reason) == 500
    assert made.numbers == {"up.inflated": 51200.0, "up.settled": 1.0}
    assert Outcome.from_json(made.to_json()) == made


def test_waiting_for_the_host_is_no_timing() -> None:
    made = outcome(0, seconds=Seconds(wait=150.0, drive=4.0, total=155.0))
    assert "wait" not in made.seconds
    assert (made.seconds["drive"], made.seconds["total"]) == (4.0, 5.0)


def test_numbers_of_lists_and_texts() -> None:
    assert dict(numbers_of({"a": [1, 2], "b": "text", "c": None, "d": {"e": 1.5}})) == {"a.size": 2.0, "d.e": 1.5}
    many = outcome(0, evidence={"n": {str(number): number for number in range(5000)}})
    assert len(many.numbers) == 400
