"""dom0's end of the talk with a domain: see postbox.py."""

from __future__ import annotations

import json
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from harness.probes import postbox
    from harness.probes.xenstore import Xenstore

    T = TypeVar("T")
else:  # beside this file, in the guest
    import postbox
    from xenstore import Xenstore

_DOMAINS = "/local/domain"


def identify(domain: str) -> int:
    """The number of a domain, by its name.

    :raises LookupError: no domain is called so.
    """
    store = Xenstore()
    try:
        return _identify(store, domain)
    finally:
        store.close()


def let_go(domain: str) -> dict[str, int]:
    """Say that the backends of a domain's virtio devices are closed: else who destroys it waits for them for ever.

    They are somebody's whom libxl does not know. 6 is XenbusStateClosed (xen/include/public/io/xenbus.h).
    """
    store = Xenstore()
    try:
        backends = f"{_DOMAINS}/0/backend/virtio/{_identify(store, domain)}"
        devices = store.ls(backends)
        for device in devices:
            store.write(f"{backends}/{device}/state", "6")
        return {"devices": len(devices)}
    finally:
        store.close()


def wait(domain: str, timeout_s: float) -> dict[str, int]:
    """Wait until a domain's agent listens.

    :raises TimeoutError: it does not in time.
    """
    store = Xenstore()
    try:
        number = _identify(store, domain)
        base = f"{_DOMAINS}/{number}/data/harness"
        _await(store, f"{base}/{postbox.READY}", lambda: store.read(f"{base}/{postbox.READY}"), timeout_s)
        return {"id": number}
    finally:
        store.close()


def call(domain: str, probe: str, arguments: dict[str, Any], timeout_s: float) -> Any:
    """Call a probe function in a domain, and give the answer of its agent, errors included: see agent.py.

    :raises TimeoutError: there is none in time; one that comes later is nobody's.
    """
    store = Xenstore()
    try:
        base = f"{_DOMAINS}/{_identify(store, domain)}/data/harness"
        serial = int((store.read(f"{base}/{postbox.ASKED}") or "0 0").split()[0]) + 1
        request = json.dumps({"id": serial, "call": probe, "arguments": arguments})
        postbox.post(store, base, postbox.REQUEST, postbox.ASKED, serial, request)

        def answered() -> str | None:
            told = (store.read(f"{base}/{postbox.ANSWERED}") or "0 0").split()[0]
            if int(told) != serial:
                return None
            return postbox.fetch(store, base, postbox.ANSWER, postbox.ANSWERED)[1]

        return json.loads(_await(store, f"{base}/{postbox.ANSWERED}", answered, timeout_s))
    finally:
        store.close()


def _await(store: Xenstore, path: str, look: Callable[[], T | None], timeout_s: float) -> T:
    """Look at each change of a node, until there is something to be seen."""
    deadline = time.monotonic() + timeout_s
    store.watch(path, "await")
    while (seen := look()) is None:
        if store.next_event(deadline - time.monotonic()) is None and time.monotonic() >= deadline:
            raise TimeoutError(f"nothing came in {timeout_s:.0f} s")
    return seen


def _identify(store: Xenstore, domain: str) -> int:
    for number in store.ls(_DOMAINS):
        if store.read(f"{_DOMAINS}/{number}/name") == domain:
            return int(number)
    raise LookupError(f"there is no domain {domain}")
