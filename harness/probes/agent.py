"""Serves calls to the other probes: one JSON object a line in, one a line out.

It talks over its standard streams. One that is to live on in a saved machine is forked from it (:func:`stay`), and then
talks over TCP with whoever connects, one at a time. In a domain of Xen's it talks by way of xenstore (postbox.py).

``{"id": 1, "call": "memory.vmstat", "arguments": {}}`` calls ``vmstat()`` of ``memory.py`` beside this file and
answers ``{"id": 1, "result": ...}`` or ``{"id": 1, "error": "...", "kind": "OSError", "errno": 12}``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    import socket
    from typing import Any

#: What an agent that stays has for standard error.
LOG = "/run/harness-agent.log"

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def answer(request: dict[str, Any]) -> dict[str, object]:
    """Make one call; never raises."""
    try:
        module, _, function = request["call"].rpartition(".")
        result = getattr(importlib.import_module(module), function)(**request["arguments"])
        return {"id": request["id"], "result": result}
    except Exception as error:
        traceback.print_exc()
        return {
            "id": request["id"],
            "error": f"{type(error).__name__}: {error}",
            "kind": type(error).__name__,
            "errno": getattr(error, "errno", None),
        }


def survive() -> None:
    """Keep the OOM killer away from this process and those above it: a probe must outlive what it provokes."""
    pid = os.getpid()
    while pid > 1:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("-1000")
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])


def stay(port: int) -> None:
    """Fork an agent that outlives this connection, with all that this one holds but its children.

    It listens on a port of the guest's own loopback before this returns.
    """
    import socket

    listener = socket.create_server(("127.0.0.1", port), backlog=1)
    if os.fork():
        listener.close()
        return
    os.setsid()
    log = os.open(LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for fd in (0, 1, 2):
        os.dup2(log, fd)
    os.closerange(3, listener.fileno())
    os.closerange(listener.fileno() + 1, 1024)
    _serve_the_newest(listener)


def _serve_the_newest(listener: socket.socket) -> None:
    """Answer whoever connected last: one who is gone may never have said so, when the machine was saved meanwhile."""
    import select

    connection, buffer = None, b""
    while True:
        ready, _, _ = select.select([listener, connection] if connection else [listener], [], [])
        if listener in ready:
            if connection:
                connection.close()
            (connection, _), buffer = listener.accept(), b""
            continue
        assert connection is not None
        try:
            data = connection.recv(65536)
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                connection.sendall(json.dumps(answer(json.loads(line))).encode() + b"\n")
        except OSError:
            data = b""
        if not data:
            connection.close()
            connection = None


def serve_domain() -> None:
    """Answer what dom0 asks this domain, for ever."""
    # Nearly every probe needs ctypes, which is slow to import; in a saved machine that is done.
    postbox, xenstore, _ = map(importlib.import_module, ("postbox", "xenstore", "ctypes"))
    store = xenstore.Xenstore()
    base, done = "data/harness", 0
    store.watch(f"{base}/{postbox.ASKED}", "asked")
    store.write(f"{base}/{postbox.READY}", "1")
    while True:
        store.next_event(3600)
        serial, text = postbox.fetch(store, base, postbox.REQUEST, postbox.ASKED)
        if serial == done:
            continue
        done = serial
        said = answer(json.loads(text))
        try:
            postbox.post(store, base, postbox.ANSWER, postbox.ANSWERED, serial, json.dumps(said))
        except ValueError as error:
            refused = {"id": serial, "error": str(error), "kind": "ValueError", "errno": None}
            postbox.post(store, base, postbox.ANSWER, postbox.ANSWERED, serial, json.dumps(refused))


def main() -> None:
    """Serve until standard input ends, or for ever in a domain."""
    survive()
    if sys.argv[1:] == ["domain"]:
        serve_domain()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a probe prints by mistake must not be taken for an answer
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
