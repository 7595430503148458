"""A machine's state is about to be saved, or was restored: what the guest itself must do about it.

All restored copies of one state are the same machine. So each is given an identity of its own, the time of day, and
randomness that the others do not have; and devices that QEMU does not save get their PCI configuration back.
"""

from __future__ import annotations

import base64
import fcntl
import importlib
import os
import signal
import socket
import struct
import subprocess
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.probes import clocks
else:
    import clocks

_TOKEN = "/etc/harness-token"  # noqa: S105 (a path)
_HOST_KEY = "/etc/dropbear/dropbear_ed25519_host_key"
_PID_FILE = "/run/dropbear.pid"
_DROPBEAR = ("dropbear", "-E", "-s", "-k", "-p", "22", "-P", _PID_FILE, "-r", _HOST_KEY)  # as in rootfs/files/init
_PCI = "/sys/bus/pci/devices"
_CONFIG_BYTES = 64  # the standard header (PCI Local Bus Specification 3.0, 6.1)
_RNDRESEEDCRNG = 0x5207  # include/uapi/linux/random.h: _IO('R', 7)
_IOC_NONE_POWER = 1 << 29  # arch/powerpc/include/uapi/asm/ioctl.h
_SIOCSIFHWADDR = 0x8924  # include/uapi/linux/sockios.h
_ARPHRD_ETHER = 1

_pci_configuration: dict[str, bytes] = {}


def preload() -> dict[str, int]:
    """Import all probes, so that no machine that goes on from this one has to: that takes a guest a second and more."""
    names = [name for name in os.listdir(os.path.dirname(os.path.abspath(__file__))) if name.endswith(".py")]
    for name in names:
        importlib.import_module(name.removesuffix(".py"))
    return {"modules": len(names)}


def prepare(unsaved: Sequence[str], port: int | None) -> dict[str, int]:
    """Make ready to be saved: remember the configuration of PCI devices, and let an agent stay.

    :param unsaved: ``vendor:device`` ids, in hexadecimal, of devices whose state QEMU does not save.
    :param port: where the agent that stays is to listen, on the guest's own loopback; None where one stays already.
    """
    import agent  # type: ignore[import-not-found]  # beside this file, in the guest

    for address in os.listdir(_PCI):
        if _id_of(address) in unsaved:
            with open(f"{_PCI}/{address}/config", "rb") as file:
                _pci_configuration[address] = file.read(_CONFIG_BYTES)
    os.sync()
    if port is not None:
        agent.stay(port)
    return {"remembered": len(_pci_configuration)}


def _id_of(address: str) -> str:
    words = []
    for name in ("vendor", "device"):
        with open(f"{_PCI}/{address}/{name}") as file:
            words.append(file.read().strip().removeprefix("0x"))
    return ":".join(words)


def resume(token: str, files: Mapping[str, tuple[str, int]], mac: str, now_s: float, randomness: str) -> dict[str, int]:
    """Become a machine of its own.

    :param token: what the saved machine was told to be; another one is another machine.
    :param files: the new identity: path to (content in base64, mode).
    :param mac: the network card's new address.
    :param now_s: seconds since the epoch.
    :param randomness: in base64, mixed into the kernel's pool.
    """
    with open(_TOKEN) as file:
        if file.read().strip() != token:
            raise ValueError("this is not the machine that was saved")
    started = clocks.start(now_s)
    _reseed(base64.b64decode(randomness))
    for address, configuration in _pci_configuration.items():
        with open(f"{_PCI}/{address}/config", "r+b") as config:
            config.write(configuration)
    for path, (content, mode) in files.items():
        fd = os.open(f"/{path}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            os.write(fd, base64.b64decode(content))
        finally:
            os.close(fd)
    _restart_sshd()
    _set_address("eth0", mac)
    return {"restored": len(_pci_configuration), **started}


def _reseed(randomness: bytes) -> None:
    """Give the kernel randomness, and let it draw its key from that now.

    Of itself it would go on for seconds with the key that it had when it was saved, and all copies had the same bytes.
    """
    number = _RNDRESEEDCRNG | (_IOC_NONE_POWER if os.uname().machine.startswith("ppc") else 0)
    with open("/dev/urandom", "wb", buffering=0) as pool:
        pool.write(randomness)
        fcntl.ioctl(pool, number)


def _restart_sshd() -> None:
    """The one that listens has the old key; connections that are open are processes of their own, and go on."""
    with open(_PID_FILE) as file:
        pid = int(file.read())
    os.kill(pid, signal.SIGTERM)
    while _runs(pid):  # it has the port
        time.sleep(0.002)
    subprocess.Popen(_DROPBEAR, stdin=subprocess.DEVNULL, start_new_session=True)


def _runs(pid: int) -> bool:
    """Whether a process has not ended; its parent may take a second to reap it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # gone before the file is opened, or before it is read
        return False


def _set_address(interface: str, mac: str) -> None:
    """Change a network card's address, and let the network know (struct ifreq, include/uapi/linux/if.h)."""
    with open(f"/proc/sys/net/ipv4/conf/{interface}/arp_notify", "w") as file:
        file.write("1")
    request = struct.pack("16sH14s8x", interface.encode(), _ARPHRD_ETHER, bytes.fromhex(mac.replace(":", "")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFHWADDR, request)
