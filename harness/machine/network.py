"""This host's end of a machine's further networks: a loopback port that QEMU forwards to the guest."""

from __future__ import annotations

import socket

from harness.deadline import Deadline

_LOOPBACK = "127.0.0.1"
_CHUNK_BYTES = 1 << 16


def exchange(port: int, data: bytes, size: int, deadline: Deadline) -> tuple[bytes, str]:
    """Send bytes to whoever listens in a guest, and then take what it sends.

    :param size: how many bytes are to come.
    :return: those that came, and why there are no more; the latter is empty when all are there. A card that loses them
        is what a caller wants to know, and no error of this host.
    """
    received = bytearray()
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=deadline.remaining_s) as connection:
            connection.sendall(data)
            while len(received) < size:
                connection.settimeout(max(deadline.remaining_s, 0.001))  # zero would mean not to wait at all
                chunk = connection.recv(min(_CHUNK_BYTES, size - len(received)))
                if not chunk:
                    return bytes(received), f"the guest closed the connection after {len(received)} bytes"
                received += chunk
    except OSError as error:
        return bytes(received), f"{error or type(error).__name__} after {len(received)} bytes"
    return bytes(received), ""
