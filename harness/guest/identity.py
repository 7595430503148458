"""Who a guest is for one run: SSH keys made for it alone, and a token that only this boot can know.

They reach the guest as one more cpio segment of its initramfs. Pinning the host key also catches reaching
the wrong machine. None of it is ever written to the results.
"""

from __future__ import annotations

import base64
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Self

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

_ED25519 = b"ssh-ed25519"


def _ssh_strings(*values: bytes) -> bytes:
    """SSH's wire strings: a big-endian length of 32 bits, then the bytes (RFC 4251, section 5)."""
    return b"".join(struct.pack(">I", len(value)) + value for value in values)


def _seed(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def _public_blob(key: Ed25519PrivateKey) -> bytes:
    return _ssh_strings(_ED25519, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


@dataclass(frozen=True, slots=True)
class Identity:
    """The keys and the token of one machine in one run."""

    host_key: Ed25519PrivateKey
    client_key: Ed25519PrivateKey
    token: str = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """A new identity."""
        return cls(Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), secrets.token_hex(16))

    @classmethod
    def from_secrets(cls, kept: Mapping[str, str]) -> Self:
        """The identity that :meth:`secrets` told of."""
        host, client = (Ed25519PrivateKey.from_private_bytes(bytes.fromhex(kept[name])) for name in ("host", "client"))
        return cls(host, client, kept["token"])

    def secrets(self) -> dict[str, str]:
        """All of it, for a saved machine; nobody but this user may read it."""
        return {"host": _seed(self.host_key).hex(), "client": _seed(self.client_key).hex(), "token": self.token}

    @property
    def host_key_blob(self) -> bytes:
        """The guest's public host key, as its SSH server presents it (RFC 8709)."""
        return _public_blob(self.host_key)

    def client_pkey(self) -> paramiko.PKey:
        """The private key that opens the guest."""
        pem = self.client_private_openssh()
        return paramiko.Ed25519Key.from_private_key(StringIO(pem))

    def client_private_openssh(self) -> str:
        """The same key in OpenSSH's own format, for ``ssh -i``."""
        return self.client_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()

    def known_hosts_key(self) -> str:
        """The host key as known_hosts has it after the host's name."""
        return f"ssh-ed25519 {base64.b64encode(self.host_key_blob).decode()}"

    def files(self) -> dict[str, tuple[bytes, int]]:
        """What goes into the guest's file system: path to (content, mode).

        The host key has dropbear's own format: the type, then seed and public key in one string of 64 bytes
        (dropbear's ``ed25519.c``, ``buf_put_ed25519_priv_key``).
        """
        public = self.host_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        authorized = f"ssh-ed25519 {base64.b64encode(_public_blob(self.client_key)).decode()} harness\n"
        return {
            "etc/dropbear/dropbear_ed25519_host_key": (_ssh_strings(_ED25519, _seed(self.host_key) + public), 0o600),
            "root/.ssh/authorized_keys": (authorized.encode(), 0o600),
            "etc/harness-token": (self.token.encode() + b"\n", 0o600),
        }
