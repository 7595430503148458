"""Verbs for Xen's shared buffers, continued: grants, as the hypervisor and the kernel that gave them have them."""

from __future__ import annotations

import re
import time

from harness.errors import CommandFailed
from harness.steps.base import Context, Evidence, Params, verb
from harness.steps.pgdir_shbuf import Name, Timeout, Watched


class _Waiting:
    """How many deferred grants each watched kernel still waits for."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}


class Count(Evidence):
    """A domain's grant table, read from Xen.

    ``live`` are the grants given, ``mapped`` those that Xen has marked as mapped by somebody, ``frames`` the distinct
    frames behind them, ``to_others`` the grants to other domains than dom0.
    """

    live: int
    mapped: int
    frames: int
    to_others: int


def grants(context: Context, *domains: str) -> list[Count]:
    """What each of some domains grants now; ``dom0`` is Domain-0."""
    names = [_xen_name(domain) for domain in domains]
    return [Count(**count) for count in context.call("granttab.count_each", layer="dom0", domains=names)]


def _xen_name(domain: str) -> str:
    return "Domain-0" if domain == "dom0" else domain


class Grants(Params):
    """Whose grants: a domU's, or dom0's own."""

    domain: Name = "guest"


@verb("grants.count")
def grants_count(context: Context, params: Grants) -> Count:
    """Count what a domain grants, in its grant table as Xen has it."""
    (count,) = grants(context, params.domain)
    return count


class Active(Evidence):
    """The references that Xen holds a mapping of."""

    refs: list[int]


@verb("grants.active")
def grants_active(context: Context, params: Grants) -> Active:
    """List a domain's mapped grants as debug key `g` prints them."""
    return Active(**context.call("granttab.active", layer="dom0", domain=_xen_name(params.domain)))


@verb("grants.watch")
def grants_watch(context: Context, params: Watched) -> None:
    """Let a kernel say which grants it cannot end yet, from now on, and try all of them again each second."""
    context.call("deferral.watch", layer=params.domain)
    context.keep(_Waiting, _Waiting).of[params.domain] = 0


class Deferred(Evidence):
    """How many grants the kernel could not end at once, and how many of such it ended later, since the last look.

    ``waiting`` is the kernel's own count of those that it still waits for, as it last said since `grants.watch`.
    """

    deferred: int
    freed: int
    leaked: int
    waiting: int


class WaitDeferred(Watched):
    """Whether to wait until none is waiting any more."""

    settle: bool = False
    timeout_s: Timeout = 30


_DEFERRING = re.compile(r"deferring g\.e\. .*total deferred (\d+)")
_FREEING = re.compile(r"freeing g\.e\. .* (\d+) remaining")
_LEAKING = re.compile(r"leaking g\.e\. ")


def deferred_in(lines: list[str], waiting: int = 0) -> Deferred:
    """What the messages of drivers/xen/grant-table.c say.

    :param waiting: how many it waited for before.
    """
    deferred = freed = leaked = 0
    for line in lines:
        if match := _DEFERRING.search(line):
            deferred, waiting = deferred + 1, int(match[1])
        elif match := _FREEING.search(line):
            freed, waiting = freed + 1, int(match[1])
        elif _LEAKING.search(line):
            leaked += 1
    return Deferred(deferred=deferred, freed=freed, leaked=leaked, waiting=waiting)


@verb("grants.deferred")
def grants_deferred(context: Context, params: WaitDeferred) -> Deferred:
    """Count what `grants.watch` made the kernel say."""
    deadline = context.within(params.timeout_s, "grants to be ended")
    waiting = context.keep(_Waiting, _Waiting).of
    if params.domain not in waiting:
        raise CommandFailed("grants.deferred without grants.watch", layer=params.domain)
    before = waiting[params.domain]
    lines: list[str] = []
    while True:
        lines += context.call("deferral.new_lines", layer=params.domain)
        found = deferred_in(lines, before)
        if not params.settle or found.waiting == 0 or deadline.expired:
            waiting[params.domain] = found.waiting
            return found
        time.sleep(0.1)
