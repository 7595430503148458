"""A scenario as it was resolved, written out: ``scenario.yaml`` of a run."""

from __future__ import annotations

import yaml

from harness.scenario.model import Scenario


def dump_scenario(scenario: Scenario) -> str:
    """The scenario with its matrix values put in, as YAML that ``harness run`` takes."""
    return yaml.safe_dump(dict(scenario.resolved), sort_keys=False, allow_unicode=True, width=120)
