"""The JSON Schema: what it takes, what it refuses, and that it agrees with the loader."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from jsonschema import Draft7Validator
from pydantic import BaseModel, ConfigDict

from harness.errors import ScenarioError
from harness.scenario.model import Catalogue, VerbSpec
from harness.scenario.schema import json_schema
from harness.strict_yaml import parse, read
from tests.unit.catalogue import catalogue
from tests.unit.test_scenario_load import BAD, FULL, GOOD, scenario_files

SCHEMA = json_schema(catalogue())
VALIDATOR = Draft7Validator(SCHEMA)

# What only the loader can know: what depends on another part of the file, or is not about its shape.
LOADER_ONLY = frozenset(
    """
    cel-arguments cel-bad-regex cel-bytes cel-constant cel-deep cel-empty cel-field-of-number cel-has-name
    cel-in-wrong-list cel-index-type cel-leading-point cel-long cel-macro-arguments cel-message cel-mixed-numbers
    cel-no-names cel-not-boolean-branch cel-not-boolean cel-number-range cel-optional-is-no-number cel-python-and
    cel-python-true cel-reserved-method cel-several-lines cel-syntax cel-too-short cel-two-faults cel-types-branch
    cel-types-hidden cel-types cel-unclosed-quote cel-unknown-field cel-unknown-function cel-unknown-method
    cel-unknown-name cel-unknown-nested-field known-failure-assertion known-failure-axis known-failure-crash-layer
    known-failure-value matrix-ambiguous-id matrix-axis-reserved matrix-cel-with-value matrix-float-in-text matrix-many
    matrix-none matrix-same-value matrix-unclosed matrix-unknown-axis matrix-unknown-machine-in-one matrix-unused-axis
    matrix-value-out-of-range name-crash-layer name-kernel-of-other-machine name-layer shape-assert-twice
    shape-crash-regex shape-tags-twice step-as-reserved step-as-twice dmar-no-unit dmar-other-machine dmar-two-keys
    domain-pci fixed-memory hypervisor-args until-load until-needs-guest
    """.split()  # noqa: SIM905  (a list of words is read more easily)
)


def faults(value: Any) -> list[str]:
    return [error.json_path for error in VALIDATOR.iter_errors(value)]


def test_is_a_draft_7_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"
    text = json.dumps(SCHEMA)
    assert "$defs" not in text
    assert "prefixItems" not in text
    assert '"title"' not in text.replace('"title": "Scenario"', "").replace('"title": {', "").replace(
        '"layer", "title"', ""
    )


def test_every_reference_has_its_definition_and_the_other_way_round() -> None:
    references = set(re.findall(r'"#/definitions/([^"]+)"', json.dumps(SCHEMA)))
    assert references == set(SCHEMA["definitions"])


def test_is_the_same_every_time() -> None:
    assert json.dumps(json_schema(catalogue())) == json.dumps(SCHEMA)


def test_the_catalogue_is_named() -> None:
    steps = SCHEMA["properties"]["drive"]["items"]["properties"]
    assert set(steps) == {"balloon.inflate", "memory.compact", "guest.run", "guest.wait", "machine.look"}
    assert steps["balloon.inflate"]["description"] == "Inflate the balloon."
    assert "pages, seconds, ok" in steps["balloon.inflate"]["properties"]["as"]["description"]
    assert "as" not in steps["guest.wait"]["properties"]
    boot = SCHEMA["definitions"]["Boot"]["properties"]
    assert boot["machine"]["anyOf"][0]["enum"] == ["pc", "xen-arm64", "xen-vtd"]
    assert boot["kernel"]["anyOf"][0]["enum"] == ["debian-6-1", "debian-6-12"]
    assert SCHEMA["properties"]["feature"]["anyOf"][0]["enum"] == ["balloon", "ioeventfd"]
    assert set(SCHEMA["properties"]["load"]["items"]["properties"]) == {"guest", "dom0"}
    assert set(boot["devices"]["properties"]["balloon0"]["properties"]) == {"deflate-on-oom", "page-limit", "iommu"}


def test_every_key_is_described() -> None:
    for owner in (SCHEMA, *SCHEMA["definitions"].values()):
        for name, schema in owner.get("properties", {}).items():
            described = "description" in schema or "$ref" in schema
            assert described, name


@pytest.mark.parametrize("text", [GOOD, FULL])
def test_takes_good_files(text: str) -> None:
    assert faults(parse(text, "f").value) == []


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_refuses_bad_files(path: Path) -> None:
    try:
        value = read(path).value
    except ScenarioError:
        return  # an editor's own YAML parser meets these
    assert bool(faults(value)) != (path.stem in LOADER_ONLY)


BASE: dict[str, Any] = parse(GOOD, "f").value


def changed(place: list[str | int], value: Any) -> dict[str, Any]:
    """The good file with one value changed."""
    whole = copy.deepcopy(BASE)
    target: Any = whole
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    return whole


PLACES: list[list[str | int]] = [
    ["feature"],
    ["boot", "machine"],
    ["boot", "kernel"],
    ["boot", "vcpus"],
    ["boot", "memory_mib"],
    ["boot", "fresh"],
    ["timeout_s"],
    ["drive", 0, "balloon.inflate", "pages"],
    ["drive", 0, "balloon.inflate", "mode"],
    ["drive", 0, "balloon.inflate", "timeout_s"],
    ["drive", 0, "balloon.inflate", "as"],
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_placeholder_may_stand_for_any_scalar(place: list[str | int]) -> None:
    assert faults(changed(place, "${axis}")) == []
    assert faults(changed(place, "no/such thing")) != []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["boot", "kernel"], "debian-6-${minor}"),
        (["boot", "kernel_args"], ["quiet", "hugepages=${n}"]),
        (["boot", "kernel_args"], ["${arg}"]),
        (["boot", "devices"], {"balloon0": {"page-limit": "${n}", "deflate-on-oom": "${b}"}}),
        (["load"], [{"guest": "${module}"}, {"guest": {"name": "${module}", "parameters": {"a": "${x} y"}}}]),
        (["tags"], ["${tag}"]),
        (["scenario"], "on ${machine}"),
        (["allow_crash"], [{"layer": "${layer}", "title": "a${b}"}]),
        (["drive", 0], {"memory.compact": None}),
        (["drive", 0], {"guest.wait": {"seconds": "${n}"}}),
        (["drive", 0], {"guest.wait": {"seconds": "forever"}}),
        (["matrix"], {"a": [1, "x", True, 1.5]}),
        (["known_failure"], [{"when": {"a": 1}, "reason": "x"}]),
    ],
)
def test_takes(place: list[str | int], value: Any) -> None:
    assert faults(changed(place, value)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["matrix"], {"a": ["${b}"]}),
        (["matrix"], {"a": []}),
        (["matrix"], {"A": [1]}),
        (["boot", "vcpus"], "${A}"),
        (["boot", "vcpus"], "x${a}"),
        (["boot", "devices"], {"balloon0": {"nothing": 1}}),
        (["boot", "devices"], {"nothing": {}}),
        (["load"], [{"nowhere": "balloon-probe"}]),
        (["load"], [{"guest": "balloon-probe", "dom0": "balloon-probe"}]),
        (["load"], [{"guest": {"name": "balloon-probe", "parameters": {"a b": 1}}}]),
        (["drive", 0], {}),
        (["drive", 0], {"memory.compact": None, "guest.wait": {"seconds": 1}}),
        (["drive", 0], {"guest.wait": None}),
        (["drive", 0], {"guest.wait": {"seconds": 1, "as": "w"}}),
        (["drive", 0], "memory.compact"),
        (["drive"], []),
        (["assert"], []),
        (["boot"], {}),
        (["nothing"], 1),
    ],
)
def test_refuses(place: list[str | int], value: Any) -> None:
    assert faults(changed(place, value)) != []


@given(scenario_files())
@settings(deadline=None, max_examples=50)
def test_takes_what_the_loader_takes(file: dict[str, Any]) -> None:
    assert faults(file) == []


class Inner(BaseModel):
    """A model within a model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pair: tuple[int, str]
    kind: Literal["inner"] = "inner"


class Boot(BaseModel):
    """A verb's own model with a name that the scenario's models have too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inner: Inner
    more: list[Inner] = []
    limits: dict[str, int | None] = {}


def test_verbs_with_models_of_their_own() -> None:
    known = catalogue()
    verb = VerbSpec("x.boot", Boot, None, "Boot.")
    schema = json_schema(Catalogue({"x.boot": verb}, known.profiles, known.modules, known.features))
    Draft7Validator.check_schema(schema)
    validator = Draft7Validator(schema)

    def valid(params: Any) -> bool:
        return bool(validator.is_valid(changed(["drive"], [{"x.boot": params}])))

    assert valid(
        {"inner": {"pair": [1, "a"]}, "more": [{"pair": ["${n}", "a"], "kind": "inner"}], "limits": {"a": None}}
    )
    assert not valid({"inner": {"pair": ["a", "a"]}})
    assert not valid({"inner": {"pair": [1, "a"], "kind": "outer"}})
    assert not valid({"inner": {"pair": [1, "a"]}, "limits": {"a": "b"}})
    assert not valid({})
