"""What can be put under test, as a list: ``harness components``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from harness.images.under_test import KERNEL, XEN
from harness.scenario.model import Scenario
from harness.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Component:
    """One thing that ``--under-test`` can name.

    :param taken_from: where it comes from when it is not under test.
    :param takes: what it can be replaced by.
    :param features: whose scenarios use it.
    """

    name: str
    taken_from: str
    takes: str
    features: tuple[str, ...]
    scenarios: int


def list_components(workspace: Workspace, scenarios: Sequence[Scenario]) -> list[Component]:
    """Every component, and who uses it."""
    users = {
        name: [item for item in scenarios if name in workspace.components_of(item)] for name in workspace.components
    }
    return [
        Component(
            name,
            *_described(workspace, name),
            features=tuple(sorted({item.feature for item in users[name]})),
            scenarios=len(users[name]),
        )
        for name in sorted(workspace.components)
    ]


def _described(workspace: Workspace, name: str) -> tuple[str, str]:
    """Where a component comes from, and what can take its place."""
    if name == KERNEL:
        small = sorted(machine for machine, profile in workspace.profiles.items() if profile.small_kernel)
        return "Debian's kernel", f"image; on {', '.join(small)} also patch, tree"
    if name == XEN:
        return "Debian's Xen, or built from its source", "binary, patch, tree"
    recipe = workspace.recipes.module(name)
    taken_from = "the kernel's package" if recipe.source == "kernel" else "built from the kernel's source"
    return taken_from, ".ko, patch, tree" if recipe.build else ".ko"


def print_components(console: Console, components: Sequence[Component]) -> None:
    """As a table."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("component", "taken from", "can be replaced by", "features", "scenarios"):
        table.add_column(column, justify="right" if column == "scenarios" else "left")
    for item in components:
        table.add_row(item.name, item.taken_from, item.takes, ", ".join(item.features), str(item.scenarios))
    console.print(table)
