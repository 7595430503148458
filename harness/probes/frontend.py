"""The frontend of a paravirtual device, seen from the domU that has it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from typing import Any

_HELPER = "xen_front_pgdir_shbuf"


def describe(kind: str) -> dict[str, Any]:
    """Which module drives the first device of a kind, and which modules use the helper for shared buffers."""
    device, holders = f"/sys/bus/xen/devices/{kind}-0", f"/sys/module/{_HELPER}/holders"
    driver = f"{device}/driver/module"
    return {
        "module": os.path.basename(os.readlink(driver)) if os.path.exists(driver) else "",
        "helper_users": sorted(os.listdir(holders)) if os.path.exists(holders) else [],
    }
