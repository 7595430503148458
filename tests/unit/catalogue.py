"""A small made-up catalogue for the tests of the scenario room."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.scenario.model import Catalogue, ProfileSpec, VerbSpec


class Params(BaseModel):
    """What a step takes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Evidence(BaseModel):
    """What a step leaves."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Inflate(Params):
    """How far."""

    pages: Annotated[int, Field(ge=0, le=1023)]
    mode: Literal["fast", "slow"] = "fast"
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30


class Inflated(Evidence):
    """What the balloon took."""

    pages: int
    seconds: float
    ok: bool


class Compact(Params):
    """Nothing to set."""


class Zone(Evidence):
    """One memory zone."""

    name: str
    free: int


class Compacted(Evidence):
    """What compaction did."""

    moved: int
    error: str | None = None
    zones: list[Zone] = []
    counters: dict[str, int] = {}
    raw: Any = None


class Run(Params):
    """A command."""

    argv: Annotated[list[str], Field(min_length=1, max_length=4)]
    env: dict[str, str] = {}
    stdin: str | None = None


class Ran(Evidence):
    """What it left."""

    status: int
    stdout: str


class Wait(Params):
    """A pause."""

    seconds: Annotated[int, Field(ge=1)] | Literal["forever"]


def catalogue() -> Catalogue:
    """Two machines, four verbs, two modules, two features."""
    verbs = (
        VerbSpec("balloon.inflate", Inflate, Inflated, "Inflate the balloon.", frozenset({"balloon"})),
        VerbSpec("memory.compact", Compact, Compacted, "Compact memory."),
        VerbSpec("guest.run", Run, Ran, "Run a command."),
        VerbSpec("guest.wait", Wait, None, "Wait."),
        VerbSpec("machine.look", Compact, Compacted, "Look from outside.", needs_guest=False),
    )
    profiles = (
        ProfileSpec(
            "pc",
            "amd64",
            frozenset({"guest"}),
            ("debian-6-1", "debian-6-12"),
            {"balloon0": {"deflate-on-oom": bool, "page-limit": int, "iommu": str}, "net0": {}},
        ),
        ProfileSpec("xen-arm64", "arm64", frozenset({"dom0"}), ("debian-6-12",), {}),
        ProfileSpec(
            "xen-vtd",
            "amd64",
            frozenset({"dom0"}),
            ("debian-6-12",),
            {},
            hypervisors=("xen",),
            domain_memory_mib=2048,
            assignable=frozenset({"nic1"}),
            tables=True,
            fixed_memory=True,
        ),
    )
    return Catalogue(
        verbs={verb.name: verb for verb in verbs},
        profiles={profile.name: profile for profile in profiles},
        modules=frozenset({"xen-privcmd", "balloon-probe"}),
        features=frozenset({"balloon", "ioeventfd"}),
    )
