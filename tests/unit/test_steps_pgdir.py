"""What verbs for shared buffers make of what they are told."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.steps.pgdir_display import Size
from harness.steps.pgdir_grants import deferred_in
from harness.steps.pgdir_shbuf import Behave

DEFERRING = "xen:grant_table: deferring g.e. 0x1b (pfn 0x3e61) (total deferred {}, total leaked 0)"
FREEING = "xen:grant_table: freeing g.e. 0x1b (pfn 0x3e61), {} remaining"


def test_grants_that_the_kernel_waits_for_are_counted() -> None:
    found = deferred_in([DEFERRING.format(1), "something else", DEFERRING.format(2)])
    assert (found.deferred, found.freed, found.leaked, found.waiting) == (2, 0, 0, 2)


def test_grants_that_the_kernel_ended_later_are_counted() -> None:
    found = deferred_in([DEFERRING.format(1), FREEING.format(0), "Freed 1 references"])
    assert (found.deferred, found.freed, found.waiting) == (1, 1, 0)


def test_a_leak_is_no_deferral() -> None:
    line = "xen:grant_table: leaking g.e. 0x1b (pfn 0x3e61) (total deferred 0, total leaked 1)"
    assert deferred_in([line]).leaked == 1 and deferred_in([line]).deferred == 0


def test_a_kernel_that_says_nothing_waits_for_what_it_waited_for() -> None:
    assert deferred_in([]).waiting == 0
    assert deferred_in(["something else"], waiting=1030).waiting == 1030
    assert deferred_in([FREEING.format(1029)], waiting=1030).waiting == 1029


def test_a_page_is_a_row_of_pixels() -> None:
    assert Size(pages=1023).extent == (1024, 1023, 32)
    assert Size(width=101, height=103, bpp=24).extent == (101, 103, 24)


@pytest.mark.parametrize(
    "wrong", [{"refuse": {"dbuf_create": 12}}, {"refuse": {"dbuf_create": -5000}}, {"silent": "x"}]
)
def test_what_a_backend_cannot_do_wrong_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Behave.model_validate(wrong)
