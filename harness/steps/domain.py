"""Verbs for the domains that Xen runs beside dom0: end them, and create them anew."""

from __future__ import annotations

import time

from harness.scenario.model import DomainRef
from harness.steps.base import Context, Evidence, Params, verb

FEATURE = "xen"


class OfDomain(Params):
    """One of the scenario's domains."""

    domain: DomainRef = "guest"


class Created(Evidence):
    """Its number now, how long it took to be created, and how long then until it answered."""

    id: int
    seconds: float
    boot_seconds: float


@verb("domain.create")
def create(context: Context, params: OfDomain) -> Created:
    """Create a domain that was destroyed, and wait until it answers."""
    domain = context.testbed.domains[params.domain]
    timeout_s = context.testbed.profile.boot_timeout_s
    started = time.monotonic()
    domain.create(context.within(timeout_s, f"domain {domain.name} to be created"))
    created = time.monotonic()
    number = domain.wait(context.within(timeout_s, f"domain {domain.name} to come up"))
    return Created(id=number, seconds=round(created - started, 3), boot_seconds=round(time.monotonic() - created, 3))


class Destroyed(Evidence):
    """How long it took."""

    seconds: float


@verb("domain.destroy")
def destroy(context: Context, params: OfDomain) -> Destroyed:
    """Destroy a domain, as pulling the plug would."""
    started = time.monotonic()
    domain = context.testbed.domains[params.domain]
    domain.destroy(context.within(30, f"domain {domain.name} to be destroyed"))
    return Destroyed(seconds=round(time.monotonic() - started, 3))
