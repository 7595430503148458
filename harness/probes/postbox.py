"""Requests to a domain and its answers, by way of xenstore: dom0 asks, the domain's agent answers.

All of it is below ``data/harness`` of the domain's own part of the store, which dom0 and the domain can write::

    ready                   the agent listens
    asked                   "SERIAL MORE TEXT": a request; MORE chunks of it are in request/0, request/1, ...
    answered                the same of its answer, with answer/0, ...

A domain's message to xenstored and back takes milliseconds, so what fits into one node is put and read with one.
A network would serve as well, but it would add grants and event channels of its own to those that tests count.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.probes.xenstore import Xenstore

READY, ASKED, ANSWERED = "ready", "asked", "answered"
REQUEST, ANSWER = "request", "answer"
#: xenstored refuses a domain's values from 2048 bytes on, names and permissions included (its option entry-size).
CHUNK_CHARS = 1536
#: It also refuses a domain more than 1000 nodes.
MAX_CHUNKS = 512


def post(store: Xenstore, base: str, what: str, told: str, serial: int, text: str) -> None:
    """Put a text, whole or not at all.

    :param text: ASCII, as JSON can be.
    :param told: the node that tells of it.
    """
    chunks = [text[start : start + CHUNK_CHARS] for start in range(CHUNK_CHARS, len(text), CHUNK_CHARS)]
    if len(chunks) > MAX_CHUNKS:
        raise ValueError(f"{len(text)} characters are too many to go through xenstore")
    line = f"{serial} {len(chunks)} {text[:CHUNK_CHARS]}"

    def put(inside: Xenstore) -> None:
        inside.rm(f"{base}/{what}")
        for number, chunk in enumerate(chunks):
            inside.write(f"{base}/{what}/{number}", chunk)
        inside.write(f"{base}/{told}", line)

    if chunks:
        store.transact(put)
    else:  # what a longer text has left there is nobody's
        store.write(f"{base}/{told}", line)


def fetch(store: Xenstore, base: str, what: str, told: str) -> tuple[int, str]:
    """The newest text with its serial number; 0 when there has been none."""

    def get(inside: Xenstore) -> tuple[int, int, str]:
        serial, more, text = (inside.read(f"{base}/{told}") or "0 0 ").split(" ", 2)
        return int(serial), int(more), text

    def get_all(inside: Xenstore) -> tuple[int, str]:
        serial, more, text = get(inside)
        return serial, text + "".join(inside.read(f"{base}/{what}/{number}") or "" for number in range(more))

    serial, more, text = get(store)
    return store.transact(get_all) if more else (serial, text)
