"""What a verb is, and where verbs are found.

A verb is a function with two annotated parameters, the context and its own parameters, that gives evidence::

    class Inflate(Params):
        mib: Annotated[int, Field(ge=0)]

    class Inflated(Evidence):
        pages: int

    @verb("balloon.inflate")
    def inflate(context: Context, params: Inflate) -> Inflated:
        '''Inflate the balloon.'''

A package adds verbs by naming its module in the entry-point group ``harness.steps``; every verb that the module
defines is then known to the loader, the JSON Schema and the runner.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, Self, TypeVar, cast, get_type_hints

from pydantic import BaseModel, ConfigDict

from harness.deadline import Deadline
from harness.machine.machine import Machine
from harness.scenario.model import VerbSpec
from harness.testbed import Testbed

ENTRY_POINTS = "harness.steps"
S = TypeVar("S")
Run = Callable[[Any, Any], "Evidence | None"]


class Params(BaseModel):
    """What a step takes. Frozen, strict, and nothing beyond the named keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Evidence(BaseModel):
    """What a step saw: numbers, strings, booleans, lists and maps of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: what the loader knows of it, and the function that does it."""

    spec: VerbSpec
    run: Run


@dataclass(slots=True)
class Context:
    """What a step works with.

    :param testbed: the running machines.
    :param deadline: by when the scenario must have ended.
    :param stack: what steps leave running; it is unwound when the last step has ended.
    """

    testbed: Testbed
    deadline: Deadline
    stack: ExitStack = field(default_factory=ExitStack)
    _kept: dict[type, object] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    @property
    def machine(self) -> Machine:
        """The machine under test."""
        return self.testbed.machine

    def call(self, function: str, *, timeout_s: float = 30, layer: str | None = None, **arguments: Any) -> Any:
        """Call a probe function in a guest.

        :param timeout_s: how long it may take under KVM.
        :param layer: the guest: by default the one that QEMU boots, which is dom0 on Xen.
        """
        return self.testbed.call(function, layer=layer, deadline=self.within(timeout_s, function), **arguments)

    def within(self, seconds: float, what: str) -> Deadline:
        """A deadline for one operation, scaled by the machine's own slowness."""
        return self.deadline.within(seconds * self.machine.time_factor, what)

    def keep(self, kind: type[S], make: Callable[[], S]) -> S:
        """Something that steps share for the length of the scenario; made at first use."""
        if kind not in self._kept:
            self._kept[kind] = make()
        return cast("S", self._kept[kind])


def verb(name: str) -> Callable[[Callable[[Context, Any], Evidence | None]], Verb]:
    """Make a function a verb. Its docstring's first line is what ``harness schema`` says of it."""

    def wrap(function: Callable[[Context, Any], Evidence | None]) -> Verb:
        hints = get_type_hints(function)
        params = list(inspect.signature(function).parameters)[1]
        evidence = hints["return"]
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        spec = VerbSpec(
            name=name,
            params=hints[params],
            evidence=None if evidence is type(None) else evidence,
            summary=summary,
        )
        return Verb(spec, function)

    return wrap


def _verbs_of(module: object) -> Iterator[Verb]:
    return (value for value in vars(module).values() if isinstance(value, Verb))


def find_features() -> frozenset[str]:
    """The features that scenarios can name: each step module's ``FEATURE``, where it has one."""
    modules = (entry.load() for entry in entry_points(group=ENTRY_POINTS))
    return frozenset(module.FEATURE for module in modules if hasattr(module, "FEATURE"))


def find_verbs() -> Mapping[str, Verb]:
    """Every verb of every installed package, by name.

    :raises ValueError: when two packages define the same verb.
    """
    verbs: dict[str, Verb] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        for found in _verbs_of(entry.load()):
            if found.spec.name in verbs:
                raise ValueError(f"the verb {found.spec.name} is defined twice, the second time in {entry.value}")
            verbs[found.spec.name] = found
    return verbs
