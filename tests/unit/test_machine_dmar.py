"""The DMAR table that a scenario declares, byte by byte."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pydantic import ValidationError

from harness.machine.dmar import OEM_ID, dmar_table, oem_table_id
from harness.scenario.dmar import Dmar


def declared(*structures: dict[str, Any], **rest: Any) -> Dmar:
    """A declaration, as a file has it."""
    return Dmar.model_validate({"structures": structures, **rest}, strict=False)


def structures_of(table: bytes) -> list[tuple[int, bytes]]:
    """The table's structures: type and what follows the length, as a reader of the table walks it."""
    found, rest = [], table[48:]
    while rest:
        kind, length = struct.unpack_from("<HH", rest)
        found.append((kind, rest[4:length]))
        rest = rest[length:]
    return found


DRHD = bytes.fromhex("010000000000d9fe000000000308000000ff0000")


def test_a_table_of_one_unit_in_the_middle_node() -> None:
    table = dmar_table(declared({"drhd": {}}, {"atsr": {}}, {"rhsa": {"proximity_domain": 1}}))
    assert table[:4] == b"DMAR"
    assert int.from_bytes(table[4:8], "little") == len(table) == 100
    assert sum(table) % 256 == 0
    assert table[10:16] == OEM_ID
    assert table[36:38] == bytes([38, 1])
    assert structures_of(table) == [
        (0, DRHD),
        (2, bytes([1, 0, 0, 0])),
        (3, struct.pack("<IQI", 0, 0xFED90000, 1)),
    ]


def test_the_order_is_the_scenarios() -> None:
    table = dmar_table(declared({"rhsa": {"proximity_domain": 2, "address": 4096}}, {"drhd": {}}))
    assert structures_of(table) == [(3, struct.pack("<IQI", 0, 4096, 2)), (0, DRHD)]


def test_a_bad_checksum_is_the_only_difference() -> None:
    good, bad = (dmar_table(declared({"drhd": {}}, bad_checksum=flag)) for flag in (False, True))
    assert sum(bad) % 256 != 0
    differing = {at for at in range(len(good)) if good[at] != bad[at]}
    assert 9 in differing
    assert differing <= {9, *range(16, 24)}  # the name is another, too


def test_each_declaration_has_a_name_of_its_own() -> None:
    names = {oem_table_id(declared({"drhd": {}}, {"rhsa": {"proximity_domain": node}})) for node in range(20)}
    assert len(names) == 20
    assert all(len(name) == 8 and name.isalnum() for name in names)


@pytest.mark.parametrize(
    ("structures", "said"),
    [
        ([{"drhd": {}, "atsr": {}}], "one of drhd, rhsa, atsr, got 2 keys"),
        ([{}], "got 0 keys"),
        ([{"atsr": {}}], "must have a drhd"),
        ([{"drhd": {}}, {"rhsa": {}}], "proximity_domain"),
        ([{"drhd": {"address": -1}}], "greater than or equal to 0"),
        ([{"drhd": {}}, {"rhsa": {"proximity_domain": 1 << 32}}], "less than"),
        ([{"rmrr": {}}], "rmrr"),
        ([], "at least 1 item"),
    ],
)
def test_what_is_no_table_is_refused(structures: list[Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        declared(*structures)
