"""dom0's end of the talk with a domain: see postbox.py."""

from __future__ import annotations

import json
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from harness.probes import postbox
    from harness.probes.once import once
    from harness.probes.xenstore import Xenstore

    T = TypeVar("T")
else:  # beside this file, in the guest
    import postbox
    from once import once
    from xenstore import Xenstore

_DOMAINS = "/local/domain"


class _Shared:
    """What calls share: a connection, with the nodes that it watches, and the numbers that domains had.

    A call that makes all of it anew takes twice as long.
    """

    def __init__(self) -> None:
        self.store = Xenstore()
        self.watched: set[str] = set()
        self.numbers: dict[str, int] = {}


def identify(domain: str) -> int:
    """The number of a domain, by its name.

    :raises LookupError: no domain is called so.
    """
    shared = once(_Shared)
    known = shared.numbers.get(domain)
    for number in shared.store.ls(_DOMAINS) if known is None else [known]:
        if shared.store.read(f"{_DOMAINS}/{number}/name") == domain:
            shared.numbers[domain] = int(number)
            return int(number)
    if known is None:
        raise LookupError(f"there is no domain {domain}")
    del shared.numbers[domain]  # another one has the name now, or none
    return identify(domain)


def let_go(domain: str) -> dict[str, int]:
    """Say that the backends of a domain's virtio devices are closed: else who destroys it waits for them for ever.

    They are somebody's whom libxl does not know. 6 is XenbusStateClosed (xen/include/public/io/xenbus.h).
    """
    store = once(_Shared).store
    backends = f"{_DOMAINS}/0/backend/virtio/{identify(domain)}"
    devices = store.ls(backends)
    for device in devices:
        store.write(f"{backends}/{device}/state", "6")
    return {"devices": len(devices)}


def wait(domain: str, timeout_s: float) -> dict[str, int]:
    """Wait until a domain's agent listens.

    :raises TimeoutError: it does not in time.
    """
    number = identify(domain)
    ready = f"{_home(number)}/{postbox.READY}"
    _await(ready, lambda: once(_Shared).store.read(ready), timeout_s)
    return {"id": number}


def call(domain: str, probe: str, arguments: dict[str, Any], timeout_s: float) -> Any:
    """Call a probe function in a domain, and give the answer of its agent, errors included: see agent.py.

    :raises TimeoutError: there is none in time; one that comes later is nobody's.
    """
    base, store = _home(identify(domain)), once(_Shared).store
    serial = int((store.read(f"{base}/{postbox.ASKED}") or "0").split(" ", 1)[0]) + 1
    request = json.dumps({"id": serial, "call": probe, "arguments": arguments})
    postbox.post(store, base, postbox.REQUEST, postbox.ASKED, serial, request)

    def answered() -> str | None:
        told, text = postbox.fetch(store, base, postbox.ANSWER, postbox.ANSWERED)
        return text if told == serial else None

    return json.loads(_await(f"{base}/{postbox.ANSWERED}", answered, timeout_s))


def _home(number: int) -> str:
    return f"{_DOMAINS}/{number}/data/harness"


def _await(path: str, look: Callable[[], T | None], timeout_s: float) -> T:
    """Look at each change of a node, until there is something to be seen."""
    deadline, shared = time.monotonic() + timeout_s, once(_Shared)
    if path not in shared.watched:
        shared.store.watch(path, "await")
        shared.watched.add(path)
    while (seen := look()) is None:
        if shared.store.next_event(deadline - time.monotonic()) is None and time.monotonic() >= deadline:
            raise TimeoutError(f"nothing came in {timeout_s:.0f} s")
    return seen
