"""Kernel modules: load with what they depend on, unload, look at."""

from __future__ import annotations

import ctypes
import json
import os

DIRECTORY = "/lib/harness/modules"
_DEPENDENCIES = "/lib/harness/modules.dep.json"
# asm/unistd.h of each architecture: finit_module, delete_module
_SYSCALLS = {"x86_64": (313, 176), "aarch64": (273, 106), "ppc64le": (353, 129)}
_O_NONBLOCK = 0o4000


def _syscall(number: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _numbers() -> tuple[int, int]:
    return _SYSCALLS[os.uname().machine]


def loaded() -> list[str]:
    """The names of the loaded modules."""
    with open("/proc/modules") as file:
        return [line.split()[0] for line in file]


def _insert(name: str, parameters: dict[str, object]) -> None:
    path = f"{DIRECTORY}/{name}.ko"
    text = " ".join(f"{key}={value}" for key, value in parameters.items()).encode()
    fd = os.open(path, os.O_RDONLY)
    try:
        _syscall(_numbers()[0], ctypes.c_int(fd), ctypes.c_char_p(text), ctypes.c_int(0))
    except OSError as error:
        raise OSError(error.errno, f"the kernel refuses module {name}: {error.strerror}") from error
    finally:
        os.close(fd)


def load(name: str, parameters: dict[str, object] | None = None) -> dict[str, object]:
    """Load a module and what it depends on; parameters are for the module itself."""
    with open(_DEPENDENCIES) as file:
        dependencies = json.load(file)
    here = set(loaded())
    order = [item for item in dependencies[name] if item.replace("-", "_") not in here]
    for item in order:
        _insert(item, (parameters or {}) if item == name else {})
    return {"order": order, "build_id": build_id(name)}


def unload(name: str) -> dict[str, bool]:
    """Unload a module; the kernel refuses while it is in use."""
    _syscall(_numbers()[1], ctypes.c_char_p(name.replace("-", "_").encode()), ctypes.c_uint(_O_NONBLOCK))
    return {"loaded": name.replace("-", "_") in loaded()}


def build_id(name: str) -> str:
    """The GNU build id of a loaded module, in hexadecimal; empty where it was linked without one.

    The note's header is three 32-bit words (elf.h, Elf64_Nhdr), then the name ``GNU`` padded to four bytes.
    """
    try:
        with open(f"/sys/module/{name.replace('-', '_')}/notes/.note.gnu.build-id", "rb") as file:
            return file.read()[16:].hex()
    except FileNotFoundError:
        return ""
