"""The JSON Schema of scenario files, for editors: draft 7, from the models that the loader itself uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from harness.scenario.model import IDENTIFIER, Boot, Catalogue, Matrix, ModuleSpec, ScenarioFile, VerbSpec

DRAFT = "http://json-schema.org/draft-07/schema#"

Schema = dict[str, Any]

# A matrix value may stand for any scalar, and for any part of a text.
_PLACEHOLDER: Schema = {"type": "string", "pattern": rf"^\$\{{{IDENTIFIER}\}}$"}
_PLACEHOLDER_WITHIN: Schema = {"type": "string", "pattern": r"\$\{"}
_ANNOTATIONS = ("default", "description")
_TYPES: Mapping[type, str] = {bool: "boolean", int: "integer", str: "string"}


def json_schema(catalogue: Catalogue) -> Schema:
    """The schema of a scenario file that may name what is in ``catalogue``.

    It refuses nothing that the loader takes. What depends on another part of the file, such as the kernels that its
    machine boots or the evidence that an assertion reads, only the loader checks.
    """
    verbs = catalogue.verbs.values()
    models: list[type[BaseModel]] = [ScenarioFile, Boot, ModuleSpec, Matrix, *(verb.params for verb in verbs)]
    references, generated = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template="#/definitions/{model}"
    )
    names = {model: references[(model, "validation")]["$ref"].rpartition("/")[2] for model in models}
    definitions: dict[str, Schema] = generated["$defs"]
    whole, boot, module = (definitions[names[model]] for model in (ScenarioFile, Boot, ModuleSpec))

    whole["properties"]["feature"]["enum"] = sorted(catalogue.features)
    _name_machines(boot["properties"], catalogue)
    module["properties"]["name"]["enum"] = sorted(catalogue.modules)
    either = {"anyOf": [module["properties"]["name"], {"$ref": f"#/definitions/{names[ModuleSpec]}"}]}
    layers = {layer for profile in catalogue.profiles.values() for layer in profile.layers}
    whole["properties"]["load"]["items"] = _one_of(dict.fromkeys(sorted(layers), either))
    whole["properties"]["drive"]["items"] = _one_of(
        {verb.name: _step(verb, definitions[names[verb.params]]) for verb in verbs}
    )
    tidy = {name: _tidy(schema, opened=name != names[Matrix]) for name, schema in definitions.items()}
    root = tidy.pop(names[ScenarioFile])
    return {"$schema": DRAFT, "title": "Scenario", **root, "definitions": _referenced(root, tidy)}


def _name_machines(boot: Schema, catalogue: Catalogue) -> None:
    """Narrow ``boot`` to the machines, kernels and device properties of the catalogue."""
    profiles = catalogue.profiles.values()
    kernels = dict.fromkeys(kernel for profile in profiles for kernel in profile.kernels)
    boot["machine"]["enum"] = sorted(catalogue.profiles)
    boot["kernel"]["anyOf"] = [{"enum": list(kernels)}, {"type": "null"}]
    cpus = dict.fromkeys(cpu for profile in profiles for cpu in profile.cpus)
    boot["cpu"]["anyOf"] = [{"enum": list(cpus)}, {"type": "null"}]
    devices: dict[str, dict[str, Schema]] = {}
    for profile in profiles:
        for device, settable in profile.devices.items():
            properties = devices.setdefault(device, {})
            for name, kind in settable.items():
                properties.setdefault(name, {"anyOf": []})["anyOf"].append({"type": _TYPES[kind]})
    boot["devices"] = {
        "type": "object",
        "description": boot["devices"]["description"],
        "properties": {
            device: {"type": "object", "properties": properties, "additionalProperties": False}
            for device, properties in devices.items()
        },
        "additionalProperties": False,
    }


def _step(verb: VerbSpec, params: Schema) -> Schema:
    """A step's parameters, with the name that its evidence gets."""
    properties = dict(params.get("properties", {}))
    if verb.evidence is not None:
        seen = ", ".join(verb.evidence.model_fields)
        properties["as"] = {
            "type": "string",
            "pattern": f"^{IDENTIFIER}$",
            "description": f"What assertions call what the step saw: {seen}.",
        }
    kind = "object" if params.get("required") else ["object", "null"]
    return {**params, "type": kind, "properties": properties, "description": verb.summary}


def _one_of(properties: Mapping[str, Schema]) -> Schema:
    """A mapping of one key."""
    closed = {"properties": dict(properties), "additionalProperties": False}
    return {"type": "object", "minProperties": 1, "maxProperties": 1, **closed}


def _tidy(schema: Any, *, opened: bool) -> Any:
    """A schema as draft 7 spells it, without pydantic's titles.

    :param opened: admit a matrix placeholder wherever a scalar stands.
    """
    if not isinstance(schema, dict):
        return schema
    notes = {key: schema[key] for key in _ANNOTATIONS if schema.get(key) is not None}
    rest = {key: item for key, item in schema.items() if key not in (*_ANNOTATIONS, "title", "discriminator")}
    if "$ref" in rest:
        # Draft 7 ignores what stands beside a reference.
        return {"allOf": [rest], **notes} if notes else rest
    if "prefixItems" in rest:
        rest["items"] = rest.pop("prefixItems")
    if "oneOf" in rest:
        rest["anyOf"] = rest.pop("oneOf")
    if "patternProperties" in rest:
        rest.setdefault("additionalProperties", False)
    for key, inner in rest.items():
        if key in ("properties", "patternProperties"):
            rest[key] = {name: _tidy(item, opened=opened) for name, item in inner.items()}
        elif key == "anyOf":
            rest[key] = _flat(_tidy(item, opened=opened) for item in inner)
        elif key == "items" and isinstance(inner, list):
            rest[key] = [_tidy(item, opened=opened) for item in inner]
        elif key in ("items", "additionalProperties"):
            rest[key] = _tidy(inner, opened=opened)
    placeholder = _placeholder(rest) if opened else None
    return {**rest, **notes} if placeholder is None else {"anyOf": [rest, placeholder], **notes}


def _flat(alternatives: Iterable[Schema]) -> list[Schema]:
    """Alternatives, with those that are nothing but alternatives themselves dissolved; each once."""
    flat: list[Schema] = []
    for schema in alternatives:
        inner = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
        flat += [item for item in inner if item not in flat]
    return flat


def _placeholder(schema: Schema) -> Schema | None:
    """What may stand for a scalar that the schema describes; None when it describes something else, or any text."""
    if schema.get("type") in ("boolean", "integer", "number"):
        return _PLACEHOLDER
    if "enum" in schema or "const" in schema:
        return _PLACEHOLDER_WITHIN
    limits = {"pattern", "minLength", "maxLength", "format"}
    return _PLACEHOLDER_WITHIN if schema.get("type") == "string" and limits & set(schema) else None


def _referenced(root: Schema, definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    """Those of the definitions that are still referred to."""
    wanted: dict[str, Schema] = {}
    pending = [root]
    while pending:
        names = re.findall(r"'#/definitions/([^']+)'", str(pending.pop()))
        for name in names:
            if name not in wanted:
                wanted[name] = definitions[name]
                pending.append(wanted[name])
    return wanted
