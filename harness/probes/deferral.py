"""Grants that this guest's kernel cannot end yet, because somebody still maps them (drivers/xen/grant-table.c)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.probes import kernel_log
else:  # beside this file, in the guest
    import kernel_log


_PACE = "/sys/module/grant_table/parameters/free_per_iteration"


def watch() -> dict[str, int]:
    """Let the kernel say which grants it defers and ends later, and look at all of them each second, not at ten."""
    kernel_log.speak("file drivers/xen/grant-table.c +p")
    kernel_log.follow("grants")
    with open(_PACE, "w") as file:
        file.write("0")
    return {}


def new_lines() -> list[str]:
    """What the kernel has said since the last call."""
    return kernel_log.new_lines("grants")
