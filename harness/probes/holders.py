"""Processes of a guest's own that hold what must not be the agent's: files, mappings, limits.

Each is forked from the agent, is told what to do over a socket, one JSON array a line (operation, arguments), and
answers with one object. It can be killed with all that it holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

    Answer = dict[str, Any]

_holders: dict[str, tuple[int, TextIO]] = {}  # name: (pid, stream to it)


class HolderDied(RuntimeError):
    """A holder ended instead of answering; :func:`end` tells of what."""


def start(name: str, serve: Callable[[socket.socket], None]) -> int:
    """Fork a holder, which ends when ``serve`` returns; gives its pid.

    :param serve: called in the holder with its end of the socket.
    """
    if name in _holders:
        raise ValueError(f"there is {name} already")
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            for _, stream in _holders.values():
                stream.close()
            serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    _holders[name] = (pid, ours.makefile("rw"))
    ours.close()
    return pid


def call(name: str, operation: str, **arguments: object) -> Answer:
    """Let a holder do something, and give what it says.

    :raises OSError: with the errno of one that the holder met.
    :raises HolderDied: it died.
    :raises RuntimeError: it failed in another way.
    """
    stream = _holders[name][1]
    try:
        stream.write(json.dumps([operation, arguments]) + "\n")
        stream.flush()
        line = stream.readline()
    except (BrokenPipeError, ConnectionResetError):
        line = ""
    if not line:
        raise HolderDied(f"{operation}: it died")
    answer: Answer = json.loads(line)
    if "failure" in answer:
        told = f"{operation}: {answer['failure']}"
        raise OSError(answer["errno"], told) if answer["errno"] else RuntimeError(told)
    return answer


def answer_one(target: object, line: str) -> str:
    """In a holder: do what a line asks for by calling a method of ``target``, and give the answer's line."""
    operation, arguments = json.loads(line)
    try:
        answer = getattr(target, operation)(**arguments)
    except Exception as error:
        answer = {"failure": f"{type(error).__name__}: {error}", "errno": getattr(error, "errno", None)}
    return json.dumps(answer) + "\n"


def end(name: str, kill: bool = False) -> int:
    """End a holder: by closing its socket, or by SIGKILL with everything alive. Gives the signal it died of, or 0."""
    pid, stream = _holders.pop(name)
    if kill:
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.close()
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
