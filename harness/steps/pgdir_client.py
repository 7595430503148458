"""Verbs for Xen's shared buffers, continued: the clients of a display and of a sound card in the domU.

A client is a process of its own (``harness/probes/drm.py``, ``alsa.py``), known by its device, and started when it is
needed.
"""

from __future__ import annotations

from typing import Any

from harness.errors import CommandFailed
from harness.steps.base import Context, Evidence, verb
from harness.steps.pgdir_shbuf import DISPLAY, SOUND, OfDevice, domain_of

_PROBES = {DISPLAY: "drm", SOUND: "alsa"}


def in_client(
    context: Context, device: str, operation: str, *, may_die: bool = False, how: str = "call", **arguments: object
) -> dict[str, Any]:
    """Let a client do something, and give what it says; ``died`` is the signal that it died of, else empty.

    :param how: the probe's function that lets it.
    :raises CommandFailed: it died, and may not.
    """
    domain = domain_of(context, device)
    answer = context.call(
        f"{_PROBES[device]}.{how}", layer=domain, timeout_s=60, operation=operation, arguments=arguments
    )
    if "died" in answer and not may_die:
        raise CommandFailed(f"the client died of {answer['died']} in {operation}", layer=domain)
    return {"died": "", **answer}


class Outcome(Evidence):
    """The name of the errno; empty when there is none."""

    error: str


class Identity(Evidence):
    """Who answers behind a device: its driver, and what it says of itself."""

    driver: str
    about: str


def identify(context: Context, device: str) -> Identity:
    """Ask a device for its driver."""
    answer = in_client(context, device, "identify")
    return Identity(driver=answer["driver"], about=answer["about"])


class EndClient(OfDevice):
    """Whose client, and whether it is killed."""

    kill: bool = False


class ClientEnded(Evidence):
    """The signal that it died of; 0 for none."""

    signal: int


@verb("shbuf.end_client")
def end(context: Context, params: EndClient) -> ClientEnded:
    """End a device's client; the kernel frees the buffers that it held."""
    probe, domain = _PROBES[params.device], domain_of(context, params.device)
    return ClientEnded(**context.call(f"{probe}.end", layer=domain, timeout_s=60, kill=params.kill))
