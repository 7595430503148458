"""The image store as a table."""

from __future__ import annotations

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from harness.images import Store


def print_store(console: Console, store: Store) -> None:
    """One row an entry."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("kind", "name", "arch", "size", "built", "packages", "key"):
        table.add_column(column, justify="right" if column in ("size", "packages") else "left")
    total = 0
    for entry in store.list():
        size = sum(file.size for file in entry.files.values()) + (entry.tree_bytes or 0)
        total += size
        table.add_row(
            entry.kind, entry.name, entry.arch, decimal(size), entry.created, str(len(entry.packages)), entry.key[:12]
        )
    console.print(table)
    console.print(f"{decimal(total)} in {store.root}", highlight=False, soft_wrap=True)
