"""The keys of one run: in the formats that their readers expect, never twice the same, and never told."""

from __future__ import annotations

import base64
import os
import stat
import struct
import subprocess
from io import StringIO
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from harness.guest.identity import Identity
from harness.guest.ssh import Journal
from tests.programs import needs

HOST_KEY = "etc/dropbear/dropbear_ed25519_host_key"
AUTHORIZED = "root/.ssh/authorized_keys"
TOKEN = "etc/harness-token"


@pytest.fixture
def identity() -> Identity:
    """A run's."""
    return Identity.generate()


def strings(data: bytes) -> list[bytes]:
    """SSH's wire strings (RFC 4251, section 5), read to the very end."""
    found = []
    while data:
        (length,) = struct.unpack_from(">I", data)
        assert len(data) >= 4 + length
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def raw_private(key: Ed25519PrivateKey) -> bytes:
    """A key's seed."""
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def raw_public(key: Ed25519PrivateKey) -> bytes:
    """Its public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def test_the_host_key_is_one_that_dropbear_reads(identity: Identity) -> None:
    """Type and one string of 64 bytes: dropbear's ``buf_get_ed25519_priv_key`` in ``ed25519.c``."""
    content, mode = identity.files()[HOST_KEY]
    kind, both = strings(content)
    assert kind == b"ssh-ed25519"
    assert len(both) == 64
    again = Ed25519PrivateKey.from_private_bytes(both[:32])
    assert raw_public(again) == both[32:] == raw_public(identity.host_key)
    assert mode == 0o600


def test_the_host_key_as_the_server_shows_it(identity: Identity) -> None:
    kind, public = strings(identity.host_key_blob)
    assert (kind, public) == (b"ssh-ed25519", raw_public(identity.host_key))
    shown = paramiko.Ed25519Key(data=identity.host_key_blob)
    assert shown.asbytes() == identity.host_key_blob
    message = b"signed"
    Ed25519PublicKey.from_public_bytes(public).verify(identity.host_key.sign(message), message)


def test_the_host_key_in_known_hosts(identity: Identity) -> None:
    kind, encoded = identity.known_hosts_key().split()
    assert kind == "ssh-ed25519"
    assert base64.b64decode(encoded, validate=True) == identity.host_key_blob


def test_the_clients_key_loads_and_opens_what_is_authorized(identity: Identity) -> None:
    content, mode = identity.files()[AUTHORIZED]
    kind, encoded, comment = content.decode().rstrip("\n").split(" ")
    assert (kind, comment, mode) == ("ssh-ed25519", "harness", 0o600)
    loaded = paramiko.Ed25519Key.from_private_key(StringIO(identity.client_private_openssh()))
    assert base64.b64decode(encoded, validate=True) == loaded.asbytes() == identity.client_pkey().asbytes()
    assert loaded.can_sign()


@needs("ssh-keygen", "test")
def test_openssh_itself_reads_the_clients_key(identity: Identity, tmp_path: Path) -> None:
    path = tmp_path / "key"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(identity.client_private_openssh())
    argv = ["ssh-keygen", "-y", "-f", str(path)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout
    assert said.split()[:2] == identity.files()[AUTHORIZED][0].decode().split()[:2]


def test_the_token(identity: Identity) -> None:
    content, mode = identity.files()[TOKEN]
    assert content.decode() == identity.token + "\n"
    assert len(bytes.fromhex(identity.token)) == 16
    assert mode == 0o600


def test_what_goes_into_the_guest_is_that_and_nothing_else(identity: Identity) -> None:
    files = identity.files()
    assert set(files) == {HOST_KEY, AUTHORIZED, TOKEN}
    assert all(stat.S_IMODE(mode) == 0o600 for _, mode in files.values())
    everything = b"".join(content for content, _ in files.values())
    assert raw_private(identity.client_key) not in everything


def test_no_two_are_alike() -> None:
    several = [Identity.generate() for _ in range(20)]
    for secrets in (
        {raw_private(one.host_key) for one in several} | {raw_private(one.client_key) for one in several},
        {one.host_key_blob for one in several} | {one.client_pkey().asbytes() for one in several},
    ):
        assert len(secrets) == 40
    assert len({one.token for one in several}) == 20


def test_one_stays_as_it_is(identity: Identity) -> None:
    assert identity.files() == identity.files()
    assert identity.client_private_openssh().startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(AttributeError):
        identity.token = "other"  # type: ignore[misc]


def secrets_of(identity: Identity) -> list[str]:
    """Everything that must not be told, in every form in which it might be."""
    found = [identity.token]
    for key in (identity.host_key, identity.client_key):
        seed = raw_private(key)
        found += [seed.hex(), base64.b64encode(seed).decode(), repr(seed)[2:-1]]
    found += [line for line in identity.client_private_openssh().splitlines() if not line.startswith("---")]
    return found


def test_it_does_not_tell_itself(identity: Identity) -> None:
    """A traceback that shows local variables, a debugger, a log: ``repr`` gets into all of them."""
    for told in (repr(identity), str(identity), f"{identity}"):
        assert not [secret for secret in secrets_of(identity) if secret in told]


def test_a_journal_holds_no_keys(identity: Identity, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "ssh.jsonl")
    journal.record(layer="guest", argv=("echo", "x"), identity=identity, key=identity.client_key)
    text = (tmp_path / "ssh.jsonl").read_text()
    assert "echo" in text
    assert not [secret for secret in secrets_of(identity) if secret in text]
