"""The repository's own scenarios and its generated schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from harness.gate.policy import matches, read_policy
from harness.progress import SilentProgress
from harness.scenario.schema import json_schema
from harness.workspace import Workspace

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "scenarios").rglob("*.yaml"))


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace(SilentProgress())


def test_every_scenario_is_right(workspace: Workspace) -> None:
    scenarios, problems = workspace.load([ROOT / "scenarios"])
    assert not problems
    assert len({scenario.id for scenario in scenarios}) == len(scenarios) >= len(SCENARIOS)


def test_the_committed_policy_is_about_every_feature_and_names_what_there_is(workspace: Workspace) -> None:
    scenarios, _ = workspace.load([ROOT / "scenarios"])
    policy, _ = read_policy(ROOT / "policy.yaml", scenarios, workspace.components)
    guards = {item.id for item in scenarios if {"gate", "smoke"} & set(item.tags)}
    assert guards == {item.id for item in scenarios for rule in policy.require if rule.fits(item)}
    known = {
        item.id
        for item in scenarios
        for failure in item.known_failure
        if all(item.matrix.get(axis) == value for axis, value in failure.when.items())
    }
    let_through = {item.id for item in scenarios for rule in policy.known_failures if matches(item.id, rule.scenario)}
    assert let_through == known & guards
    assert {rule.component for rule in policy.mutation} == {path.name for path in (ROOT / "mutants").iterdir()}


def test_the_committed_schema_is_the_generated_one(workspace: Workspace) -> None:
    committed = json.loads((ROOT / "scenarios" / "scenario.schema.json").read_text())
    assert committed == json_schema(workspace.catalogue), "run `harness schema > scenarios/scenario.schema.json`"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_editors_see_no_fault(path: Path, workspace: Workspace) -> None:
    jsonschema.Draft7Validator(json_schema(workspace.catalogue)).validate(yaml.safe_load(path.read_text()))
