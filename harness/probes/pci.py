"""PCI devices: which is which, and who drives it."""

from __future__ import annotations

import os

_DEVICES = "/sys/bus/pci/devices"
_EDU_VENDOR = "0x1234"


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def address(device: str) -> str:
    """``edu2`` is the second edu device by PCI address; ``sibling`` shares the third one's bridge, ``rng`` is alone."""
    found = sorted(os.listdir(_DEVICES))
    if device == "rng":
        return next(name for name in found if name.startswith("0004:"))
    edus = [name for name in found if _read(f"{_DEVICES}/{name}/vendor") == _EDU_VENDOR]
    if device == "sibling":
        return next(name for name in found if name[:4] == edus[2][:4] and name not in edus)
    return edus[int(device.removeprefix("edu")) - 1]


def group(device: str) -> int:
    """The number of a device's IOMMU group; -1 when it is in none."""
    link = f"{_DEVICES}/{address(device)}/iommu_group"
    return int(os.path.basename(os.readlink(link))) if os.path.exists(link) else -1


def _driver(at: str) -> str:
    link = f"{_DEVICES}/{at}/driver"
    return os.path.basename(os.readlink(link)) if os.path.exists(link) else ""


def bind(device: str, driver: str) -> dict[str, object]:
    """Give a device to a driver; an empty name takes it from whichever it has. Says what it has then."""
    at = address(device)
    directory = f"{_DEVICES}/{at}"
    if _driver(at):
        _write(f"{directory}/driver/unbind", at)
    failure = 0
    _write(f"{directory}/driver_override", driver or "\n")
    if driver:
        try:
            _write("/sys/bus/pci/drivers_probe", at)
        except OSError as error:
            failure = error.errno or -1
    return {"address": at, "driver": _driver(at), "group": group(device), "errno": failure}
