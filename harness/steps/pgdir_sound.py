"""Verbs for Xen's shared buffers, continued: the sound card's client in the domU, by ALSA ioctls.

A stream is ``playback`` or ``capture``; its buffer goes by that name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.steps.base import Context, Evidence, Params, verb
from harness.steps.pgdir_client import Identity, Outcome, identify, in_client
from harness.steps.pgdir_grants import Count, grants
from harness.steps.pgdir_shbuf import (
    NOTHING,
    SOUND,
    Compared,
    Directory,
    Pages,
    Seed,
    adopt,
    domain_of,
    in_backend,
)

_PAGE = 4096
_FRAME = 4
_STREAMS = ("playback", "capture")
_Stream = Literal["playback", "capture"]


def _in_client(context: Context, operation: str, **arguments: Any) -> dict[str, Any]:
    answer = in_client(context, SOUND, operation, **arguments)
    answer.pop("died")
    return answer


class OfStream(Params):
    """Which stream."""

    stream: _Stream = "playback"


def _do(context: Context, operation: str, params: OfStream) -> Outcome:
    return Outcome(**_in_client(context, operation, **params.model_dump()))


@verb("sound.open")
def open_stream(context: Context, params: OfStream) -> Outcome:
    """Open a stream."""
    return _do(context, "open", params)


class SetParams(OfStream):
    """The size of the buffer in pages, and how many periods it has."""

    pages: Pages
    periods: Annotated[int, Field(ge=1, le=1024)] = 2


@verb("sound.params")
def set_params(context: Context, params: SetParams) -> Outcome:
    """Set a stream's parameters (HW_PARAMS): the frontend allocates and grants its buffer."""
    size = params.pages * _PAGE
    return Outcome(**_in_client(context, "params", stream=params.stream, size=size, periods=params.periods))


class Prepared(Outcome):
    """What the backend was told: the directory of the stream's buffer."""

    directory: Directory | None


@verb("sound.prepare")
def prepare(context: Context, params: OfStream) -> Prepared:
    """Prepare a stream: the frontend opens it at its backend."""
    answer = _in_client(context, "prepare", stream=params.stream)
    return Prepared(error=answer["error"], directory=adopt(context, SOUND, params.stream))


class Patterned(OfStream):
    """Which pattern."""

    seed: Seed = 1


class Moved(Outcome):
    """How many frames (of 4 bytes) that were."""

    frames: int


@verb("sound.write")
def write(context: Context, params: Patterned) -> Moved:
    """Write a pattern, as much as the buffer holds."""
    return Moved(**_in_client(context, "write", **params.model_dump()))


@verb("sound.compare")
def compare(context: Context, params: Patterned) -> Compared:
    """Compare every byte of a stream's buffer with a pattern, in the backend."""
    return Compared(**in_backend(context, SOUND, "compare", buffer=params.stream, seed=params.seed))


@verb("sound.start")
def start(context: Context, params: OfStream) -> Outcome:
    """Start a stream."""
    return _do(context, "start", params)


@verb("sound.drop")
def drop(context: Context, params: OfStream) -> Outcome:
    """Stop a stream at once."""
    return _do(context, "drop", params)


class Advance(OfStream):
    """How far the stream has come since it was opened."""

    octets: Annotated[int, Field(ge=0, lt=1 << 40)]


@verb("sound.advance")
def advance(context: Context, params: Advance) -> None:
    """Let the backend tell how far a stream has come."""
    _advance(context, params.stream, params.octets)


def _advance(context: Context, stream: str, octets: int) -> None:
    in_backend(context, SOUND, "advance", channel=_STREAMS.index(stream), octets=octets)


@verb("sound.delay")
def delay(context: Context, params: OfStream) -> Moved:
    """Ask how far the application is ahead of the backend."""
    return Moved(**_in_client(context, "delay", **params.model_dump()))


@verb("sound.free")
def free(context: Context, params: OfStream) -> Outcome:
    """Free a stream's buffer (HW_FREE): the frontend closes it at its backend and ends its grants."""
    return _do(context, "free", params)


@verb("sound.close")
def close(context: Context, params: OfStream) -> Outcome:
    """Close a stream."""
    return _do(context, "close", params)


class Exchange(Params):
    """The size of both streams' buffers in pages, and the patterns that are sent through them."""

    pages: Pages
    seed: Seed = 1


class Exchanged(Evidence):
    """Two buffers' lives: played from the frontend to the backend, captured the other way.

    ``errors`` names what went wrong, each as ``capture prepare: EIO``; ``before``, ``during`` (both are open) and
    ``after`` are the domU's grants. What could not be done was compared in no byte.
    """

    errors: list[str]
    played: Directory | None
    captured: Directory | None
    to_backend: Compared
    to_frontend: Compared
    before: Count
    during: Count
    after: Count


@verb("sound.exchange")
def exchange(context: Context, params: Exchange) -> Exchanged:
    """Open both streams, play and capture every byte of their buffers, and close them."""
    domain, size, seed = domain_of(context, SOUND), params.pages * _PAGE, 2 * params.seed
    (before,) = grants(context, domain)
    errors: list[str] = []
    directories = {stream: _open(context, stream, params.pages, errors) for stream in _STREAMS}
    to_backend = to_frontend = NOTHING
    if not errors:
        _try(context, errors, "playback", "write", seed=seed)
        to_backend = Compared(**in_backend(context, SOUND, "compare", buffer="playback", seed=seed))
        to_frontend = _capture(context, size, seed + 1, errors)
    (during,) = grants(context, domain)
    ends = [(operation, {"stream": stream}) for stream in _STREAMS for operation in ("drop", "free", "close")]
    _try_each(context, errors, *ends)
    (after,) = grants(context, domain)
    return Exchanged(
        errors=errors,
        played=directories["playback"],
        captured=directories["capture"],
        to_backend=to_backend,
        to_frontend=to_frontend,
        before=before,
        during=during,
        after=after,
    )


def _try(context: Context, errors: list[str], stream: str, operation: str, **arguments: object) -> dict[str, Any]:
    return _try_each(context, errors, (operation, {"stream": stream, **arguments}))[0]


def _try_each(context: Context, errors: list[str], *calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Do one thing after the other in the client, whatever comes of each."""
    answers: list[dict[str, Any]] = _in_client(context, "each", calls=calls)["answers"]
    for (operation, arguments), answer in zip(calls, answers, strict=True):
        if answer["error"]:
            errors.append(f"{arguments['stream']} {operation}: {answer['error']}")
    return answers


def _open(context: Context, stream: str, pages: int, errors: list[str]) -> Directory | None:
    """Open a stream with a buffer of so many pages; gives the directory that the backend was told of."""
    this = {"stream": stream}
    size = {"size": pages * _PAGE, "periods": 2}
    _try_each(context, errors, ("open", this), ("params", {**this, **size}), ("prepare", this))
    return adopt(context, SOUND, stream)


def _capture(context: Context, size: int, seed: int, errors: list[str]) -> Compared:
    """Read a whole buffer in two halves: a position that went all the way round looks to ALSA as if it stood still."""
    in_backend(context, SOUND, "capture", seed=seed)
    _try(context, errors, "capture", "start")
    total = NOTHING
    for offset in (0, size // 2):
        _advance(context, "capture", offset + size // 2)
        answer = _try(context, errors, "capture", "read", seed=seed, size=size // 2, offset=offset)
        total = Compared(
            bytes=total.bytes + answer["frames"] * _FRAME,
            wrong=total.wrong + answer["wrong"],
            wrong_pages=total.wrong_pages + answer["wrong_pages"],
            first_wrong_page=max(total.first_wrong_page, answer["first_wrong_page"]),
        )
    return total


@verb("sound.identify")
def identify_card(context: Context, _: Params) -> Identity:
    """Ask for the sound card's driver."""
    return identify(context, SOUND)
