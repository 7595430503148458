"""What a network card carries, both ways: the far end compares, and this end's hashes go another way than the card's.

A process of its own holds the connection, so that the agent never waits for a card that fails.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from harness.probes import holders
else:  # beside this file, in the guest
    import holders

INTERFACES = "/sys/class/net"
_HOLDER = "netcard"
_READY = "ready"
_CHUNK_BYTES = 1 << 16


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _find(mac: str) -> str:
    """The interface that has an address.

    :raises OSError: there is none.
    """
    seen = {name: _read(f"{INTERFACES}/{name}/address") for name in sorted(os.listdir(INTERFACES))}
    for name, address in seen.items():
        if address == mac:
            return name
    raise FileNotFoundError(f"no network card has the address {mac}, found {seen}")


def _counted(name: str) -> tuple[int, int]:
    """How many bytes the kernel counts for an interface: received, sent."""
    received, sent = (int(_read(f"{INTERFACES}/{name}/statistics/{way}_bytes")) for way in ("rx", "tx"))
    return received, sent


def listen(mac: str, address: str, port: int, size: int, seconds: float) -> dict[str, str]:
    """Give a card an address, and let one connection send so many bytes and get as many random ones.

    A card that is not there or fails is what a caller wants to know, and no error of the call.

    :param seconds: how long each part of it may take.
    """
    try:
        name = _find(mac)
    except OSError as error:
        return {"interface": "", "error": str(error)}
    told, tell = os.pipe()
    holders.start(_HOLDER, lambda stream: _serve(stream, Exchange(name, address, port, size, seconds), tell))
    os.close(tell)
    try:
        ready, _, _ = select.select([told], [], [], seconds)
        said = os.read(told, 4096).decode() if ready else ""
    finally:
        os.close(told)
    if said == _READY:
        return {"interface": name, "error": ""}
    if not ready:  # the holder may hang in the kernel, and whoever waits for its end with it
        return {"interface": name, "error": f"{name} cannot be set up in {seconds:.0f} s"}
    holders.end(_HOLDER)
    return {"interface": name, "error": said or f"{name}: who sets it up has died"}


def result() -> dict[str, object]:
    """Wait until the connection that :func:`listen` allows is over, and say what was seen of it."""
    try:
        seen = holders.call(_HOLDER, "tell")
    except holders.HolderDied:
        signal = holders.end(_HOLDER)
        nothing = {"received_sha256": "", "sent_sha256": "", "card_received_bytes": 0, "card_sent_bytes": 0}
        return {**nothing, "error": f"the process that held the connection died of signal {signal}"}
    holders.end(_HOLDER)
    return seen


def _serve(stream: socket.socket, exchange: Exchange, tell: int) -> None:
    try:
        exchange.prepare()
        os.write(tell, _READY.encode())
    except (OSError, subprocess.CalledProcessError) as error:
        os.write(tell, str(error).encode())
        return
    exchange.run()
    for line in stream.makefile():
        stream.sendall(holders.answer_one(exchange, line).encode())


class Exchange:
    """One connection.

    :param name: the interface, which gets the address.
    :param size: how many bytes go each way.
    :param seconds: how long each wait may take.
    """

    def __init__(self, name: str, address: str, port: int, size: int, seconds: float) -> None:
        self._name = name
        self._address = address
        self._port = port
        self._size = size
        self._seconds = seconds
        self._listener = socket.socket()
        self._seen: dict[str, object] = {}

    def prepare(self) -> None:
        """Set the card up and listen. On a card that loses what it is sent this may never end."""
        argv = ["ifconfig", self._name, self._address, "netmask", "255.255.255.0", "up"]
        subprocess.run(argv, check=True)
        self._listener = socket.create_server((self._address, self._port))
        self._listener.settimeout(self._seconds)

    def run(self) -> None:
        """Take bytes, then send some."""
        digest, mine, error = hashlib.sha256(), os.urandom(self._size), ""
        before = _counted(self._name)
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(self._seconds)
                left = self._size
                while left:
                    data = connection.recv(min(_CHUNK_BYTES, left))
                    if not data:
                        raise ConnectionError(f"it was closed with {left} bytes to come")
                    digest.update(data)
                    left -= len(data)
                connection.sendall(mine)
                connection.recv(1)  # until the other end has all of it
        except Exception as failure:  # what is not told here is told by nobody
            error = f"{type(failure).__name__}: {failure}"
        after = _counted(self._name)
        self._seen = {
            "received_sha256": digest.hexdigest(),
            "sent_sha256": hashlib.sha256(mine).hexdigest(),
            "card_received_bytes": after[0] - before[0],
            "card_sent_bytes": after[1] - before[1],
            "error": error,
        }

    def tell(self) -> dict[str, object]:
        """What was seen."""
        return self._seen
