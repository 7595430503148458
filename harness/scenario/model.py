"""What a scenario file may say, what it is checked against, and what comes of it. Values only: no I/O.

The pydantic models describe the file as it is written and are what the JSON Schema is generated from; the dataclasses
describe the catalogue that the upper rooms pass down, and a scenario that has been loaded.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, RootModel

from harness.regex import PatternError, compiled
from harness.scenario.dmar import Dmar
from harness.scenario.expect import Expectation
from harness.strict_yaml import dump
from harness.validate import fault, shown

MAX_COMBINATIONS = 100
IDENTIFIER = "[a-z][a-z0-9_]{0,63}"
"""What evidence and matrix axes can be called, as a regular expression."""

# https://github.com/google/cel-spec/blob/master/doc/langdef.md#syntax: neither an identifier nor a field.
_CEL_RESERVED = frozenset(
    {"as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in"}
    | {"let", "loop", "namespace", "null", "package", "return", "true", "var", "void", "while"}
)


# Unicode's categories of control and format characters, and of line and paragraph separators.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def _not_reserved(name: str) -> str:
    if name in _CEL_RESERVED:
        raise fault(f"{shown(name)} is a reserved word of CEL", "choose another name")
    return name


def _one_line(text: Any) -> Any:
    if isinstance(text, str) and any(unicodedata.category(character) in _UNSEEN for character in text):
        raise fault(f"must be one line without control characters, got {shown(text)}")
    return text


def _distinct(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list that says the same twice. ``4`` and ``"4"`` are the same: they make the same scenario id."""
    seen: set[str] = set()
    for item in items:
        text = spell(item)
        if text in seen:
            raise fault(f"items must differ, got {shown(item)} twice", "remove one of the two")
        seen.add(text)
    return items


def _compiles(pattern: str) -> str:
    try:
        compiled(pattern)
    except PatternError as error:
        raise fault(
            f"must be a regular expression that RE2 takes, got {shown(pattern)}: {error}", r"put \ before ( [ * + ? ."
        ) from error
    return pattern


RegularExpression = Annotated[str, AfterValidator(_compiles)]


def _one_pair(what: str) -> BeforeValidator:
    """A mapping of exactly one key, told in the words of the list that it is an item of."""
    key = what.partition(":")[0]

    def check(value: Any) -> Any:
        if isinstance(value, str):
            raise fault(f"must be {what}, got the string {shown(value)}", 'put a ":" after the name')
        if isinstance(value, dict) and len(value) != 1:
            found = ", ".join(value) if value else "nothing"
            hint = f'start each {key} with a "- " of its own, and indent what belongs to it further than its name'
            raise fault(f"must be {what}, got {found}", hint)
        return value

    return BeforeValidator(check)


Scalar = bool | int | float | str
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Identifier = Annotated[str, Field(pattern=f"^{IDENTIFIER}$"), AfterValidator(_not_reserved)]
Line = Annotated[
    str,
    Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"),
    BeforeValidator(_one_line),
]
Printable = Annotated[str, Field(max_length=256, pattern=r"^[ -~]*$")]
Setting = bool | int | Printable
KernelArg = Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z0-9_.]+(=[A-Za-z0-9_.,:@/+-]*)?$")]
EventName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,80}\*?$")]
DomainName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]

# A matrix value becomes a part of the scenario's id, which names directories and test cases.
MatrixText = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+=,@-]{1,64}$")]
MatrixValues = Annotated[
    tuple[bool | int | float | MatrixText, ...], Field(min_length=1, max_length=20), AfterValidator(_distinct)
]


@dataclass(frozen=True, slots=True)
class OneOf:
    """Marks a field of a verb's parameters that names something of the machine: one of its domains, or its layers."""

    what: Literal["domain", "layer"]


LayerName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$"), OneOf("layer")]
DomainRef = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$"), OneOf("domain")]


class FileModel(BaseModel):
    """A part of a scenario file: nothing beyond the named keys, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Domain(FileModel):
    """A domain that Xen runs beside dom0. It is up when the boot is over."""

    type: Literal["pv", "pvh"] | None = None
    """How it is virtualized, where the profile has a choice; the profile's first by default."""
    vcpus: Annotated[int, Field(ge=1, le=8)] = 1
    """Virtual CPUs."""
    memory_mib: Annotated[int, Field(ge=64, le=4096)] = 128
    """Its memory."""
    virtio_mmio: Annotated[int, Field(ge=0, le=4)] = 0
    """How many virtio-mmio devices it has, for backends of the scenario's own."""
    kernel_args: Annotated[tuple[KernelArg, ...], Field(max_length=64)] = ()
    """Added to its kernel's command line."""
    pci: Annotated[tuple[Name, ...], Field(max_length=8), AfterValidator(_distinct)] = ()
    """Devices of the profile that it has to itself."""


class Boot(FileModel):
    """The machine and what it carries."""

    machine: Name
    """A profile in images/machines/."""
    kernel: Name | None = None
    """One of the kernels that the profile boots; its first by default."""
    cpu: Name | None = None
    """One of the CPU models that the profile offers under emulation; its own by default."""
    memory_mib: Annotated[int, Field(ge=64, le=65536)] | None = None
    """Memory of the machine; the profile's by default."""
    vcpus: Annotated[int, Field(ge=1, le=64)] | None = None
    """Virtual CPUs; the profile's by default."""
    kernel_args: Annotated[tuple[KernelArg, ...], Field(max_length=64)] = ()
    """Added to the kernel's command line."""
    devices: dict[Name, dict[str, Setting]] = {}
    """Properties of the profile's devices, by device."""
    dmar: Dmar | None = None
    """The ACPI table that tells of IOMMUs, in place of the machine's own."""
    hypervisor_args: Annotated[tuple[KernelArg, ...], Field(max_length=64)] = ()
    """Added to the hypervisor's command line."""
    until: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[ -~]*$")] | None = None
    """Stop the machine when its console shows this text: no guest is there then, only steps that need none. Where Xen
    shows it before dom0 runs, dom0's kernel may be an outline, with nothing in it."""
    trace: Annotated[tuple[EventName, ...], Field(max_length=32)] = ()
    """QEMU's trace events that are on during the boot, beside the profile's."""
    hypervisor: Name | None = None
    """One of the hypervisors that the profile boots; its first by default."""
    domains: Annotated[dict[DomainName, Domain], Field(max_length=8)] = {}
    """Domains to create, by name; each is a layer of its own."""
    fresh: bool = False
    """Boot cold, even where a snapshot of the booted machine would do."""


class ModuleSpec(FileModel):
    """A module with parameters."""

    name: Name
    """A recipe in images/modules/."""
    parameters: dict[ParameterName, Setting] = {}
    """Module parameters, as modprobe takes them."""
    later: bool = False
    """Have it at hand and do not load it: a step does."""


LoadEntry = Annotated[dict[Name, Name | ModuleSpec], Field(min_length=1, max_length=1), _one_pair("LAYER: MODULE")]
DriveEntry = Annotated[
    dict[str, dict[str, Any] | None], Field(min_length=1, max_length=1), _one_pair("VERB: {PARAMETERS}")
]


class AllowedCrash(FileModel):
    """A crash that the scenario provokes on purpose."""

    layer: Name
    """The console on which it shows: qemu, xen, or a guest's name."""
    title: Annotated[RegularExpression, Field(min_length=1, max_length=200)]
    """A regular expression that is searched for in the crash's title."""


class KnownFailure(FileModel):
    """A combination of the matrix that is expected to fail, and is reported as such."""

    when: dict[Identifier, Scalar] = {}
    """Values of matrix axes; with none, every combination."""
    reason: Line
    """Why it fails: a bug's address, a missing feature."""
    assertion: str | None = None
    """The one assertion that fails, as it is written under assert; any failure by default."""
    crash: AllowedCrash | None = None
    """The crash that shows, and no other one."""


def _few_combinations(axes: dict[str, tuple[Scalar, ...]]) -> dict[str, tuple[Scalar, ...]]:
    combinations = prod(len(values) for values in axes.values())
    if combinations > MAX_COMBINATIONS:
        raise fault(f"must have at most {MAX_COMBINATIONS} combinations, got {combinations}", "split the file")
    return axes


class Matrix(RootModel[dict[Identifier, MatrixValues]]):
    """Axes, each with the values that it takes: one scenario for each combination."""

    model_config = ConfigDict(frozen=True, strict=True)

    root: Annotated[
        dict[Identifier, MatrixValues], Field(min_length=1, max_length=5), AfterValidator(_few_combinations)
    ]


class ScenarioFile(FileModel):
    """A scenario: boot a machine, load modules, drive the code under test, assert what was seen.

    In any string, ``${axis}`` stands for the value of a matrix axis, and ``$${`` for the characters ``${``.
    """

    scenario: Line
    """What is shown to hold, in one line."""
    feature: Name
    """The feature whose code is under test."""
    description: str | None = None
    """What the title has no room for."""
    tags: Annotated[tuple[Name, ...], Field(max_length=32), AfterValidator(_distinct)] = ()
    """Words to select scenarios by."""
    boot: Boot
    """The machine and what it carries."""
    load: Annotated[tuple[LoadEntry, ...], Field(max_length=64)] = ()
    """Modules to load, in order, each as LAYER: MODULE."""
    drive: Annotated[tuple[DriveEntry, ...], Field(min_length=1, max_length=500)]
    """Steps, in order, each as VERB: {as: name, parameters}."""
    assertions: Annotated[
        tuple[str, ...], Field(min_length=1, max_length=200, alias="assert"), AfterValidator(_distinct)
    ]
    """CEL expressions over the evidence that steps leave under their names; every one must hold."""
    allow_crash: Annotated[tuple[AllowedCrash, ...], Field(max_length=32)] = ()
    """Crashes that are no failure."""
    known_failure: Annotated[tuple[KnownFailure, ...], Field(max_length=100)] = ()
    """What is expected to fail."""
    matrix: Matrix | None = None
    """Axes whose combinations make several scenarios of this file."""
    timeout_s: Annotated[int, Field(ge=1, le=7200)] = 600
    """How long drive may take under KVM; emulation gets more."""


@dataclass(frozen=True, slots=True)
class VerbSpec:
    """A verb that a step can name.

    :param params: the model of its parameters.
    :param evidence: the model of what it leaves; None when it leaves nothing.
    :param summary: one line for the JSON Schema.
    :param features: the features that it belongs to; none for a verb that every machine has.
    :param needs_guest: whether it does something in a guest that takes commands.
    """

    name: str
    params: type[BaseModel]
    evidence: type[BaseModel] | None
    summary: str
    features: frozenset[str] = frozenset()
    needs_guest: bool = True


@dataclass(frozen=True, slots=True)
class ProfileSpec:
    """What a scenario may ask of a machine profile.

    :param arch: the machine's architecture.
    :param layers: where modules can be loaded: ``guest``, ``dom0``.
    :param kernels: the kernels that it boots, its default first.
    :param devices: the settable properties of each device, with their types: bool, int or str.
    :param cpus: the CPU models that can be chosen under emulation.
    :param hypervisors: what it can boot under its kernel, its default first; none on a plain machine.
    :param domain_types: how domains can be virtualized, the default first; none where there is no choice.
    :param virtio_mmio: whether domains can have virtio-mmio devices.
    :param domain_memory_mib: what its memory leaves to all domains together.
    :param assignable: the devices that a domain can have to itself.
    :param tables: whether its ACPI tables can be replaced.
    :param fixed_memory: whether its memory cannot be changed, because its nodes share it out.
    """

    name: str
    arch: str
    layers: frozenset[str]
    kernels: tuple[str, ...]
    devices: Mapping[str, Mapping[str, type]]
    cpus: tuple[str, ...] = ()
    hypervisors: tuple[str, ...] = ()
    domain_types: tuple[str, ...] = ()
    virtio_mmio: bool = False
    domain_memory_mib: int = 0
    assignable: frozenset[str] = frozenset()
    tables: bool = False
    fixed_memory: bool = False


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything that a scenario can name."""

    verbs: Mapping[str, VerbSpec]
    profiles: Mapping[str, ProfileSpec]
    modules: frozenset[str]
    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class ModuleLoad:
    """A module to load.

    :param layer: where: ``guest``, ``dom0``.
    :param later: whether a step loads it, and not the load phase.
    """

    layer: str
    module: str
    parameters: Mapping[str, bool | int | str]
    later: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One step of ``drive``.

    :param name: what its evidence is called in assertions; None when it has no ``as``.
    :param params: an instance of the verb's own model.
    :param line: where the step stands in the file.
    :param key: likewise, as a path: ``drive[1].balloon.inflate``.
    """

    verb: VerbSpec
    name: str | None
    params: BaseModel
    line: int
    key: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """One combination of one scenario file's matrix, checked and ready to run.

    :param id: the file's path without suffix, with the matrix values in brackets: ``balloon/inflate[pc-4k]``.
    :param known_failure: only those that apply to this combination.
    :param matrix: this combination's value for each axis.
    :param resolved: the file's plain values with the matrix values put in: itself a valid scenario.
    """

    id: str
    path: Path
    title: str
    feature: str
    tags: tuple[str, ...]
    boot: Boot
    load: tuple[ModuleLoad, ...]
    drive: tuple[Step, ...]
    assertions: tuple[Expectation, ...]
    allow_crash: tuple[AllowedCrash, ...]
    known_failure: tuple[KnownFailure, ...]
    timeout_s: int
    matrix: Mapping[str, Scalar]
    resolved: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Of all that the scenario says: the same hash is the same scenario."""
        return hashlib.sha256(dump(dict(self.resolved)).encode()).hexdigest()


def spell(value: Scalar) -> str:
    """A scalar as it reads in a scenario's id and in the middle of a text: ``true``, ``4``, ``pc``."""
    return value if isinstance(value, str) else str(value).lower()
