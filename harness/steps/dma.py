"""Verbs that move data by DMA, and compare it with what lies at the other end."""

from __future__ import annotations

import hashlib
import random
import time
from typing import Annotated

from pydantic import Field

from harness.errors import CommandFailed
from harness.machine.drives import contents
from harness.machine.network import exchange
from harness.machine.spec import EXCHANGE_PORT, network_address
from harness.scenario.model import LayerName, Name
from harness.steps.base import Context, Evidence, Params, verb

#: Reads are at the disk's beginning, and writes behind them, so that a later read finds what was there first.
_WRITE_AT = 8 << 20
_WRITE_BYTES = 1 << 20
_EXCHANGE_S = 10


class Disk(Params):
    """One of the profile's drives, how much of it is read, and in which guest."""

    drive: Name = "disk"
    mib: Annotated[int, Field(ge=1, le=8)] = 4
    layer: LayerName | None = None
    seed: Annotated[str, Field(pattern=r"^[a-z0-9]{1,16}$")] = "1"


class DiskSeen(Evidence):
    """What went through the disk's controller.

    ``read_same`` says whether the bytes that the guest read are those of the drive's file on the host, and
    ``written_same`` whether that file has the bytes that the guest wrote. ``error`` is what became of a disk that is
    not there, or fails.
    """

    path: str
    error: str
    read_bytes: int
    read_same: bool
    written_bytes: int
    written_same: bool
    seconds: float


@verb("dma.disk")
def disk(context: Context, params: Disk) -> DiskSeen:
    """Read and write a disk in a guest, past its page cache, and compare both ends."""
    started = time.monotonic()
    size = params.mib << 20
    drive = context.testbed.profile.drives[params.drive]
    wanted = hashlib.sha256(contents(params.drive, drive.size_mib << 20)[:size]).hexdigest()

    def attempt(operation: str, **arguments: object) -> dict[str, str]:
        answer: dict[str, str] = context.call(
            "dma.attempt",
            timeout_s=60,
            layer=params.layer,
            operation=operation,
            drive=params.drive,
            **arguments,
        )
        return answer

    read = attempt("read", offset=0, size=size)
    wrote = attempt("write", offset=_WRITE_AT, size=_WRITE_BYTES, seed=params.seed)
    with (context.testbed.scratch / params.drive).open("rb") as file:
        file.seek(_WRITE_AT)
        found = hashlib.sha256(file.read(_WRITE_BYTES)).hexdigest()
    return DiskSeen(
        path=read["path"],
        error=read["error"] or wrote["error"],
        read_bytes=size,
        read_same=read["sha256"] == wanted,
        written_bytes=_WRITE_BYTES,
        written_same=wrote["sha256"] == found,
        seconds=round(time.monotonic() - started, 3),
    )


class Network(Params):
    """How much goes to the guest and comes back."""

    kib: Annotated[int, Field(ge=1, le=8192)] = 1024


class NetworkSeen(Evidence):
    """What went through the network card, both ways, and whether it came back as it was."""

    sent_bytes: int
    same: bool
    seconds: float


@verb("dma.network")
def network(context: Context, params: Network) -> NetworkSeen:
    """Send bytes to the guest that QEMU boots, let it send them back, and compare them."""
    data = random.randbytes(params.kib << 10)  # noqa: S311 (nothing secret)
    deadline = context.within(60, "bytes to come back")
    done = context.machine.ssh(deadline).run(["cat"], stdin=data, deadline=deadline)
    return NetworkSeen(sent_bytes=len(data), same=done.stdout == data, seconds=done.seconds)


class Exchange(Params):
    """One of the profile's network cards, how much goes each way, and which guest has it."""

    device: Name
    kib: Annotated[int, Field(ge=1, le=8192)] = 1024
    layer: LayerName | None = None


class ExchangeSeen(Evidence):
    """What went through a network card.

    ``sent_same`` says whether the bytes that the guest got are those that this host sent, and ``received_same`` whether
    this host got those that the guest sent: each end tells of its own. ``card_received_bytes`` and ``card_sent_bytes``
    are what the guest's kernel counts for the card meanwhile. ``error`` is what became of a card that fails.
    """

    interface: str
    error: str
    sent_bytes: int
    sent_same: bool
    received_bytes: int
    received_same: bool
    card_received_bytes: int
    card_sent_bytes: int
    seconds: float


@verb("dma.exchange")
def exchange_bytes(context: Context, params: Exchange) -> ExchangeSeen:
    """Send bytes to a guest through one of its network cards, get others back, and compare both ends."""
    started = time.monotonic()
    profile, monitor = context.testbed.profile, context.machine.monitor
    network = profile.devices[params.device].properties.get("netdev") if params.device in profile.devices else None
    if network not in profile.networks:
        raise CommandFailed(f"dma.exchange: {params.device} is no card on one of the machine's further networks")
    address = network_address(profile, str(network))
    size = params.kib << 10
    mine = random.randbytes(size)  # noqa: S311 (nothing secret)
    deadline = context.within(_EXCHANGE_S, "bytes to go both ways through a network card")
    listens = context.call(
        "netcard.listen",
        layer=params.layer,
        mac=monitor.mac_of(params.device),
        address=address,
        port=EXCHANGE_PORT,
        size=size,
        seconds=deadline.remaining_s,
    )
    received, error = b"", listens["error"]
    seen = {"received_sha256": "", "sent_sha256": "", "card_received_bytes": 0, "card_sent_bytes": 0, "error": error}
    if not error:
        received, error = exchange(monitor.forwarded_port(address), mine, size, deadline)
        seen = context.call("netcard.result", layer=params.layer, timeout_s=2 * _EXCHANGE_S)
    return ExchangeSeen(
        interface=listens["interface"],
        error=error or seen["error"],
        sent_bytes=size,
        sent_same=seen["received_sha256"] == hashlib.sha256(mine).hexdigest(),
        received_bytes=len(received),
        received_same=seen["sent_sha256"] == hashlib.sha256(received).hexdigest(),
        card_received_bytes=seen["card_received_bytes"],
        card_sent_bytes=seen["card_sent_bytes"],
        seconds=round(time.monotonic() - started, 3),
    )
