"""One combination of a scenario file, checked against the models and against the catalogue.

Every part is looked at even when another is wrong, so that all problems of a file come at once. What the models have
already refused is not judged a second time, and what depends on something unknown is let pass.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from harness.errors import Problem, ScenarioError
from harness.scenario.expect import Expectation
from harness.scenario.model import (
    Catalogue,
    Domain,
    FileModel,
    Identifier,
    ModuleLoad,
    OneOf,
    ProfileSpec,
    ScenarioFile,
    Step,
    VerbSpec,
)
from harness.strict_yaml import Document, KeyPath, dotted, quoted
from harness.validate import described, did_you_mean, one_of, validate

# Consoles that every machine, or every Xen machine, has beside those of its guests.
_HOST_LAYERS = frozenset({"qemu", "xen"})
_TYPE_NAMES: Mapping[type, str] = {bool: "true or false", int: "an integer", str: "a string"}


class _Anything(BaseModel):
    """The evidence of a verb that is not known."""

    model_config = ConfigDict(extra="allow")


class _StepName(FileModel):
    """The one key of a step that is not the verb's own."""

    name: Identifier


@dataclass(frozen=True, slots=True)
class Checked:
    """What a combination says.

    :param file: the models' view of it; None when they refuse it.
    :param steps: the steps that are right.
    :param problems: everything that is wrong with it.
    """

    file: ScenarioFile | None
    load: tuple[ModuleLoad, ...]
    steps: tuple[Step, ...]
    assertions: tuple[Expectation, ...]
    problems: tuple[Problem, ...]


def check(document: Document, value: Any, catalogue: Catalogue) -> Checked:
    """Check one combination.

    :param document: the file, for places.
    :param value: its value with the combination's matrix values put in.
    """
    return _Check(document, value, catalogue).run()


class _Check:
    def __init__(self, document: Document, value: Any, catalogue: Catalogue) -> None:
        self._document = document
        self._value = value if isinstance(value, dict) else {}
        self._whole = value
        self._catalogue = catalogue
        self._problems: list[Problem] = []
        self._refused: frozenset[str] = frozenset()

    def run(self) -> Checked:
        file: ScenarioFile | None = None
        try:
            file = validate(ScenarioFile, self._document, value=self._whole)
        except ScenarioError as error:
            self._problems += error.problems
            self._refused = frozenset(problem.key for problem in error.problems)
        self._known(("feature",), "feature", self._catalogue.features)
        profile = self._boot()
        self._hypervisor(profile)
        self._domains(profile)
        names = frozenset(self._mapping("boot", "domains"))
        layers = None if profile is None else profile.layers | names
        load = self._load(profile, layers)
        steps, evidence = self._drive({"domain": names, "layer": layers})
        assertions = self._assertions(evidence)
        self._crashes(profile, layers)
        return Checked(file, load, steps, assertions, tuple(self._problems))

    def _at(self, *path: str | int) -> Any:
        """The value at a path; None where the file has none."""
        value = self._value
        for step in path:
            inside = step in value if isinstance(value, dict) else isinstance(value, list) and step in range(len(value))
            if not inside:
                return None
            value = value[step]
        return value

    def _mapping(self, *path: str | int) -> dict[str, Any]:
        value = self._at(*path)
        return value if isinstance(value, dict) else {}

    def _list(self, *path: str | int) -> list[Any]:
        value = self._at(*path)
        return value if isinstance(value, list) else []

    def _add(self, path: KeyPath, message: str, hint: str | None = None, *, at_key: bool = False) -> None:
        if dotted(path) not in self._refused:
            self._problems.append(self._document.problem(path, message, hint, at_key=at_key))

    def _known(self, path: KeyPath, what: str, known: Collection[str]) -> bool:
        """Whether the name at ``path`` is one of ``known``; adds a problem when it is another."""
        name = self._at(*path)
        if not isinstance(name, str):
            return False
        if name not in known:
            self._unknown(path, what, name, known)
        return name in known

    def _unknown(self, path: KeyPath, what: str, name: str, known: Collection[str], *, at_key: bool = False) -> None:
        message = f"unknown {what} {quoted(name)}, expected {one_of(sorted(known))}"
        self._add(path, message, did_you_mean(name, known), at_key=at_key)

    def _boot(self) -> ProfileSpec | None:
        if not self._known(("boot", "machine"), "machine", self._catalogue.profiles):
            return None
        profile = self._catalogue.profiles[self._at("boot", "machine")]
        self._known(("boot", "kernel"), f"kernel of {profile.name}", profile.kernels)
        self._known(("boot", "cpu"), f"CPU of {profile.name}", profile.cpus)
        for device in self._mapping("boot", "devices"):
            path: KeyPath = ("boot", "devices", device)
            if device not in profile.devices:
                self._unknown(path, f"device of {profile.name}", device, profile.devices, at_key=True)
                continue
            for name, value in self._mapping(*path).items():
                self._property((*path, name), value, profile.devices[device])
        return profile

    def _property(self, path: KeyPath, value: Any, settable: Mapping[str, type]) -> None:
        name = str(path[-1])
        if name not in settable:
            self._unknown(path, "property", name, settable, at_key=True)
        elif type(value) is not settable[name]:
            self._add(path, f"must be {_TYPE_NAMES[settable[name]]}, got {described(value)}")

    def _hypervisor(self, profile: ProfileSpec | None) -> None:
        """What depends on there being a hypervisor, and on how the machine boots it."""
        if profile is None:
            return
        if self._at("boot", "memory_mib") is not None and profile.fixed_memory:
            self._add(("boot", "memory_mib"), f"the memory of {profile.name} is its nodes'", "remove it", at_key=True)
        if self._at("boot", "dmar") is not None and not profile.tables:
            self._add(("boot", "dmar"), f"the tables of {profile.name} cannot be replaced", at_key=True)
        if self._list("boot", "hypervisor_args") and not profile.hypervisors:
            self._add(("boot", "hypervisor_args"), f"{profile.name} has no hypervisor", at_key=True)
        if self._at("boot", "until") is not None:
            for path in ("load",), ("boot", "domains"):
                if self._at(*path):
                    hint = "without it the machine boots to a guest"
                    self._add(path, "there is no guest at the end of this boot (boot.until)", hint, at_key=True)

    def _domains(self, profile: ProfileSpec | None) -> None:
        """What a profile's domains can be; their own ranges are the models' to judge."""
        if profile is None:
            return
        domains = self._mapping("boot", "domains")
        if self._at("boot", "hypervisor") is not None or domains:
            key = "domains" if domains else "hypervisor"
            if not profile.hypervisors:
                self._add(("boot", key), f"{profile.name} has no hypervisor", "name a Xen machine", at_key=True)
                return
            self._known(("boot", "hypervisor"), f"hypervisor of {profile.name}", profile.hypervisors)
        for name in domains:
            path: KeyPath = ("boot", "domains", name)
            if name in profile.layers | _HOST_LAYERS:
                self._add(path, f"{quoted(name)} is a layer that is there already", "choose another name", at_key=True)
            if profile.domain_types:
                self._known((*path, "type"), f"type of domain on {profile.name}", profile.domain_types)
            elif self._at(*path, "type") is not None:
                self._add((*path, "type"), f"{profile.name} has one type of domain only", "remove it", at_key=True)
            if self._at(*path, "virtio_mmio") and not profile.virtio_mmio:
                self._add((*path, "virtio_mmio"), f"domains of {profile.name} cannot have virtio-mmio devices")
            for index in range(len(self._list(*path, "pci"))):
                self._known((*path, "pci", index), f"device of {profile.name} for a domain", profile.assignable)
        self._domain_memory(profile, domains)

    def _domain_memory(self, profile: ProfileSpec, domains: Mapping[str, Any]) -> None:
        default = Domain().memory_mib
        sizes = [self._at("boot", "domains", name, "memory_mib") or default for name in domains]
        more = self._at("boot", "memory_mib")
        if more is None and all(isinstance(size, int) for size in sizes) and sum(sizes) > profile.domain_memory_mib:
            room = profile.domain_memory_mib
            message = f"domains of {sum(sizes)} MiB together, but {profile.name} has {room} MiB for them"
            self._add(("boot", "domains"), message, "give the machine more with memory_mib", at_key=True)

    def _load(self, profile: ProfileSpec | None, layers: frozenset[str] | None) -> tuple[ModuleLoad, ...]:
        modules: list[ModuleLoad] = []
        for index, entry in enumerate(self._list("load")):
            if not isinstance(entry, dict) or len(entry) != 1:
                continue
            layer, what = next(iter(entry.items()))
            path: KeyPath = ("load", index, layer)
            if profile is not None and layers is not None and layer not in layers:
                self._unknown(path, f"layer of {profile.name}", layer, layers, at_key=True)
            self._known((*path, "name") if isinstance(what, dict) else path, "module", self._catalogue.modules)
            if isinstance(what, str):
                modules.append(ModuleLoad(layer, what, {}))
            elif isinstance(what, dict) and "name" in what:
                later = what.get("later") is True
                modules.append(ModuleLoad(layer, what["name"], what.get("parameters", {}), later))
        return tuple(modules)

    def _drive(self, names: Mapping[str, frozenset[str] | None]) -> tuple[tuple[Step, ...], dict[str, type[BaseModel]]]:
        """The steps that are right, and the evidence that assertions can count on.

        :param names: what a field that is :class:`OneOf` can name; None where that is not known.
        """
        steps: list[Step] = []
        evidence: dict[str, type[BaseModel]] = {}
        lines: dict[str, int] = {}
        for index, entry in enumerate(self._list("drive")):
            if not isinstance(entry, dict) or len(entry) != 1:
                continue
            verb_name, given = next(iter(entry.items()))
            path: KeyPath = ("drive", index, verb_name)
            if not isinstance(given, dict | None):
                continue
            verb = self._catalogue.verbs.get(verb_name)
            if verb is None:
                self._unknown(path, "verb", verb_name, self._catalogue.verbs, at_key=True)
            name = self._step_name(path, given or {}, verb)
            line = self._document.mark(path, at_key=True).line
            if name is not None and name in lines:
                message = f"{quoted(name)} is taken by the step on line {lines[name]}"
                self._add((*path, "as"), message, "give each step a name of its own")
            elif name is not None:
                lines[name] = line
                evidence[name] = (verb.evidence if verb is not None else None) or _Anything
            if verb is not None and verb.needs_guest and self._at("boot", "until") is not None:
                message = f"{verb.name} needs a guest, and there is none at the end of this boot (boot.until)"
                self._add(path, message, at_key=True)
            params = self._params(path, given or {}, verb) if verb is not None else None
            if verb is not None and params is not None:
                self._references(path, verb, params, names)
                steps.append(Step(verb, name, params, line, dotted(path)))
        return tuple(steps), evidence

    def _step_name(self, path: KeyPath, given: Mapping[str, Any], verb: VerbSpec | None) -> str | None:
        if "as" not in given:
            return None
        inner = (*path, "as")
        if verb is not None and verb.evidence is None:
            self._add(inner, f"{verb.name} leaves no evidence to name", "remove it", at_key=True)
        try:
            return validate(_StepName, self._document, value={"name": given["as"]}).name
        except ScenarioError as error:
            for problem in error.problems:
                self._add(inner, problem.message, problem.hint)
            return None

    def _params(self, path: KeyPath, given: Mapping[str, Any], verb: VerbSpec) -> BaseModel | None:
        own = {key: item for key, item in given.items() if key != "as"}
        try:
            return validate(verb.params, self._document, path, own, also=("as",))
        except ScenarioError as error:
            self._problems += error.problems
            return None

    def _references(
        self, path: KeyPath, verb: VerbSpec, params: BaseModel, names: Mapping[str, frozenset[str] | None]
    ) -> None:
        """Look up what the parameters name of the machine, what they leave to a default included."""
        for field, info in verb.params.model_fields.items():
            mark = _mark(info)
            known = None if mark is None else names[mark.what]
            value = getattr(params, field)
            if mark is None or known is None or value is None or value in known:
                continue
            if not known:
                self._add(path, f"needs a {mark.what}, and the machine has none", "declare it in boot.domains")
            elif field in self._mapping(*path):
                self._unknown((*path, field), mark.what, value, known)
            else:
                self._add(path, f"needs a {mark.what} named {quoted(value)}", f"or set {field}", at_key=True)

    def _assertions(self, evidence: Mapping[str, type[BaseModel]]) -> tuple[Expectation, ...]:
        # A step that could not be read may have left anything.
        guessed = any(key.startswith("drive") for key in self._refused)
        expectations = {
            index: Expectation(text) for index, text in enumerate(self._list("assert")) if isinstance(text, str)
        }
        for index, expectation in expectations.items():
            anything = dict.fromkeys(expectation.roots, _Anything) if guessed else {}
            for message, hint in expectation.check({**anything, **evidence}):
                self._add(("assert", index), message, hint)
        return tuple(expectations.values())

    def _crashes(self, profile: ProfileSpec | None, layers: frozenset[str] | None) -> None:
        if profile is None or layers is None:
            return
        paths: list[KeyPath] = [("allow_crash", index) for index in range(len(self._list("allow_crash")))]
        for index in range(len(self._list("known_failure"))):
            paths.append(("known_failure", index, "crash"))
        for path in paths:
            self._known((*path, "layer"), f"layer of {profile.name}", layers | _HOST_LAYERS)


def _mark(field: FieldInfo) -> OneOf | None:
    """What a field names of the machine; the mark may be inside of an optional type."""
    inside = [item for option in get_args(field.annotation) for item in getattr(option, "__metadata__", ())]
    return next((item for item in (*field.metadata, *inside) if isinstance(item, OneOf)), None)
