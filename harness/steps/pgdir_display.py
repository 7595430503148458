"""Verbs for Xen's shared buffers, continued: the display's client in the domU, by DRM ioctls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.steps.base import Context, Evidence, Params, verb
from harness.steps.pgdir_client import Identity, Outcome, identify, in_client
from harness.steps.pgdir_grants import Count, grants
from harness.steps.pgdir_shbuf import (
    DISPLAY,
    NOTHING,
    Compared,
    Directory,
    Name,
    Pages,
    Seed,
    adopt,
    domain_of,
    in_backend,
)

_PAGE = 4096
_Extent = Annotated[int, Field(ge=1, le=65536)]
_NO_BUFFER = {"error": "", "seconds": 0.0, "size": 0, "pitch": 0}


def _in_client(context: Context, operation: str, **arguments: Any) -> dict[str, Any]:
    return in_client(context, DISPLAY, operation, **arguments)


class OfBuffer(Params):
    """Which buffer."""

    buffer: Name = "b"


class Size(OfBuffer):
    """Its size: so many whole pages, or pixels."""

    pages: Pages | None = None
    width: _Extent = 1024
    height: _Extent = 768
    bpp: Annotated[int, Field(ge=8, le=64)] = 32

    @property
    def extent(self) -> tuple[int, int, int]:
        """Width, height and bits per pixel; a page is a row of 1024 pixels."""
        if self.pages is None:
            return self.width, self.height, self.bpp
        return _PAGE // 4, self.pages, 32


class Created(Evidence):
    """What DRM_IOCTL_MODE_CREATE_DUMB came to: the name of its errno (empty: none), and what the backend was told.

    ``died`` is the signal that the client died of, as ``SIGKILL``; empty when it lives.
    """

    error: str
    died: str
    seconds: float
    size: int
    pitch: int
    directory: Directory | None
    kernel_log: list[str]


@verb("display.create")
def create(context: Context, params: Size) -> Created:
    """Create a dumb buffer, which is shared with the backend."""
    return _create(context, params)


def _create(context: Context, params: Size) -> Created:
    width, height, bpp = params.extent
    size = {"width": width, "height": height, "bpp": bpp}
    answer = _in_client(context, "create", may_die=True, how="heard", buffer=params.buffer, **size)
    return Created(**{**_NO_BUFFER, **answer}, directory=adopt(context, DISPLAY, params.buffer))


class Patterned(OfBuffer):
    """At which end, and which pattern."""

    side: Literal["frontend", "backend"]
    seed: Seed


class Touched(Evidence):
    """The signal that the client died of, as ``SIGBUS``; empty when it lives."""

    died: str


@verb("display.fill")
def fill(context: Context, params: Patterned) -> Touched:
    """Write a pattern into a buffer, at one end."""
    return Touched(died=_touch(context, "fill", params.buffer, params.side, params.seed)["died"])


def _touch(context: Context, operation: str, buffer: str, side: str, seed: int) -> dict[str, Any]:
    if side == "backend":
        return {"died": "", **in_backend(context, DISPLAY, operation, buffer=buffer, seed=seed)}
    return _in_client(context, operation, may_die=True, buffer=buffer, seed=seed)


@verb("display.compare")
def compare(context: Context, params: Patterned) -> Compared:
    """Compare every byte of a buffer with a pattern, at one end."""
    return Compared(**{**NOTHING.model_dump(), **_touch(context, "compare", params.buffer, params.side, params.seed)})


class Destroyed(Evidence):
    """What DRM_IOCTL_MODE_DESTROY_DUMB came to; ``died`` as when a buffer is created."""

    error: str
    died: str
    seconds: float
    kernel_log: list[str]


@verb("display.destroy")
def destroy(context: Context, params: OfBuffer) -> Destroyed:
    """Destroy a buffer; the frontend takes back what it granted."""
    return _destroy(context, params.buffer)


def _destroy(context: Context, buffer: str) -> Destroyed:
    answer = _in_client(context, "destroy", may_die=True, how="heard", buffer=buffer)
    return Destroyed(**{"error": "", "seconds": 0.0, **answer})


class Exchange(Size):
    """The size of the buffer, and the patterns that are sent through it."""

    seed: Seed = 1


class Exchanged(Evidence):
    """One buffer's life: created, filled and read in both directions, destroyed.

    ``errors`` names what went wrong, each as ``create: ENOMEM``; ``before``, ``during`` and ``after`` are the domU's
    grants, ``own_*`` dom0's. What could not be done was compared in no byte.
    """

    errors: list[str]
    directory: Directory | None
    size: int
    to_backend: Compared
    to_frontend: Compared
    before: Count
    during: Count
    after: Count
    own_before: Count
    own_during: Count
    own_after: Count
    kernel_log: list[str]


@verb("display.exchange")
def exchange(context: Context, params: Exchange) -> Exchanged:
    """Create a buffer, send every byte of it in both directions, and destroy it."""
    domain, seed = domain_of(context, DISPLAY), 2 * params.seed
    before, own_before = grants(context, domain, "dom0")
    created = _create(context, params)
    errors = _failed("create", created)
    compared = [NOTHING, NOTHING]
    if not errors:
        compared[0] = _send(context, params.buffer, "frontend", "backend", seed)
        compared[1] = _send(context, params.buffer, "backend", "frontend", seed + 1)
        errors += [f"transfer: {part.died}" for part in compared if part.died]
    during, own_during = grants(context, domain, "dom0")
    log = created.kernel_log
    if not errors:
        destroyed = _destroy(context, params.buffer)
        errors += _failed("destroy", destroyed)
        log = [*log, *destroyed.kernel_log]
    after, own_after = grants(context, domain, "dom0")
    return Exchanged(
        errors=errors,
        directory=created.directory,
        size=created.size,
        to_backend=compared[0],
        to_frontend=compared[1],
        before=before,
        during=during,
        after=after,
        own_before=own_before,
        own_during=own_during,
        own_after=own_after,
        kernel_log=log,
    )


def _failed(operation: str, came_to: Created | Destroyed) -> list[str]:
    said = came_to.error or came_to.died
    return [f"{operation}: {said}"] if said else []


def _send(context: Context, buffer: str, source: str, target: str, seed: int) -> Compared:
    """Write a pattern at one end and compare it at the other."""
    if died := _touch(context, "fill", buffer, source, seed)["died"]:
        return NOTHING.model_copy(update={"died": died})
    return Compared(**{**NOTHING.model_dump(), **_touch(context, "compare", buffer, target, seed)})


class Cycle(Params):
    """How often, and how large the buffer is."""

    count: Annotated[int, Field(ge=1, le=10000)]
    pages: Pages = 1


class Cycled(Evidence):
    """How many of the cycles failed, and by how many KiB the domU's unreclaimable slabs have grown meanwhile."""

    failed: int
    slab_kib: int


@verb("display.cycle")
def cycle(context: Context, params: Cycle) -> Cycled:
    """Create and destroy a buffer again and again."""
    answer = _in_client(context, "cycle", count=params.count, pages=params.pages)
    return Cycled(failed=answer["failed"], slab_kib=answer["slab_kib"])


@verb("display.identify")
def identify_display(context: Context, _: Params) -> Identity:
    """Ask the display's device for its driver."""
    return identify(context, DISPLAY)


@verb("display.show")
def show(context: Context, params: OfBuffer) -> Outcome:
    """Make a buffer a framebuffer and set the connector's mode with it."""
    return Outcome(error=_in_client(context, "show", buffer=params.buffer)["error"])


@verb("display.unshow")
def unshow(context: Context, params: OfBuffer) -> Outcome:
    """Remove a buffer's framebuffer."""
    return Outcome(error=_in_client(context, "unshow", buffer=params.buffer)["error"])


class Flip(Params):
    """Between which buffers, how often, and how long an event may take."""

    buffers: Annotated[list[Name], Field(min_length=1, max_length=8)]
    count: Annotated[int, Field(ge=1, le=10000)]
    event_s: Annotated[float, Field(gt=0, le=60)] = 10


class Flipped(Evidence):
    """The error of each flip that was refused, the events that came and those that did not, the slowest flip."""

    errors: list[str]
    events: int
    missing: int
    slowest_s: float


@verb("display.flip")
def flip(context: Context, params: Flip) -> Flipped:
    """Flip pages, each with an event, and wait for it."""
    answer = _in_client(context, "flip", buffers=params.buffers, count=params.count, timeout_s=params.event_s)
    answer.pop("died")
    return Flipped(**answer)
