"""The disk that GRUB boots a machine from."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import BootError, HostError
from harness.images.grub import AREA_BYTES
from harness.machine import boot_disk as disks
from harness.machine.boot_disk import Gap, boot_disk, check_table, disk_of, grub_commands, write_disk
from harness.machine.console import Console
from harness.machine.dmar import dmar_table, oem_table_id
from harness.machine.drives import contents, write_drive
from harness.machine.machine import BootFiles
from harness.machine.profiles import load_profiles
from harness.machine.spec import Plan
from harness.scenario.dmar import Dmar

PROFILE = load_profiles(Path(__file__).parents[2] / "images" / "machines")["xen-x86-vtd"]
TABLE = Dmar.model_validate({"structures": [{"drhd": {}}, {"rhsa": {"proximity_domain": 1}}]}, strict=False)


def plan_of(**changes: Any) -> Plan:
    """A plan for the profile."""
    values: dict[str, Any] = {"profile": PROFILE, "kernel": "trixie", "memory_mib": 4096, "vcpus": 1}
    return Plan(**values | changes)


def entries_of(archive: bytes) -> dict[str, bytes]:
    """The files of a cpio archive, read as GRUB does."""
    stream = io.BytesIO(archive)
    found: dict[str, bytes] = {}
    while True:
        header = stream.read(110)
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * number : 14 + 8 * number], 16) for number in range(13)]
        name = stream.read(fields[11]).rstrip(b"\0").decode()
        stream.read(-(110 + fields[11]) % 4)
        if name == "TRAILER!!!":
            return found
        found[name] = stream.read(fields[6])
        stream.read(-fields[6] % 4)


@pytest.fixture
def files(tmp_path: Path) -> BootFiles:
    """What a machine boots."""
    for name, content in {"xen": b"x" * 7, "kernel": b"k" * 1000, "grub": b"g" * 2000}.items():
        (tmp_path / name).write_bytes(content)
    return BootFiles(tmp_path / "kernel", (), tmp_path / "xen", None, tmp_path / "grub")


def test_grub_is_followed_by_one_partition_with_all_files(tmp_path: Path, files: BootFiles) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"i" * 513)
    plan = plan_of(dmar=TABLE)
    write_disk(tmp_path / "disk", disk_of(plan, files, initrd))
    disk = (tmp_path / "disk").read_bytes()
    assert disk[:446] == b"g" * 446
    assert disk[510:512] == b"\x55\xaa"
    assert disk[512:2000] == b"g" * 1488
    kind, first, sectors = disk[450], *struct.unpack_from("<II", disk, 454)
    assert (kind, first * 512, len(disk)) == (0x83, AREA_BYTES, AREA_BYTES + sectors * 512)
    assert disk[462:510] == bytes(48)
    assert entries_of(disk[AREA_BYTES:]) == {
        "grub.cfg": grub_commands(plan, initrd=True).encode(),
        "dmar.aml": dmar_table(TABLE),
        "xen": b"x" * 7,
        "vmlinuz": b"k" * 1000,
        "initrd": b"i" * 513,
    }


def test_a_gap_keeps_the_place_of_a_file(tmp_path: Path, files: BootFiles) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"i" * 513)
    whole, holed = disk_of(plan_of(), files, initrd), disk_of(plan_of(), files, Gap(513))
    assert [piece for piece in whole if isinstance(piece, bytes)] == [p for p in holed if isinstance(p, bytes)]
    assert [whole[holed.index(Gap(513))]] == [initrd]


@pytest.mark.parametrize(
    ("until", "kernel"),
    [
        ("*** Serial input to DOM0", b"outline of elf"),
        ("Linux version", b"k" * 1000),
        (None, b"k" * 1000),
    ],
)
def test_a_kernel_that_may_run_is_whole(
    tmp_path: Path, files: BootFiles, monkeypatch: pytest.MonkeyPatch, until: str | None, kernel: bytes
) -> None:
    monkeypatch.setattr(disks, "outline", lambda path: f"outline of {path.name}".encode())
    plan = plan_of(until=until)
    write_disk(tmp_path / "disk", disk_of(plan, replace(files, elf=tmp_path / "elf"), None))
    assert entries_of((tmp_path / "disk").read_bytes()[AREA_BYTES:])["vmlinuz"] == kernel


def test_a_kernel_that_has_no_outline_is_whole(tmp_path: Path, files: BootFiles) -> None:
    plan = plan_of(until="*** Serial input to DOM0")
    for elf in (None, files.kernel):
        write_disk(tmp_path / "disk", disk_of(plan, replace(files, elf=elf), None))
        assert entries_of((tmp_path / "disk").read_bytes()[AREA_BYTES:])["vmlinuz"] == b"k" * 1000


def test_bytes_between_files_are_one_piece() -> None:
    assert len(boot_disk(b"", {"a": b"1", "b": b"2"})) == 1


def test_grub_tells_xen_and_dom0_what_the_scenario_says() -> None:
    plan = plan_of(kernel_args=("a=b",), hypervisor_args=("iommu=no-intremap", "ats=0"))
    lines = grub_commands(plan, initrd=True).splitlines()
    assert lines[0].startswith("multiboot2 (hd0,msdos1)/xen placeholder 'dom0_mem=768M,max:768M' ")
    assert lines[0].endswith(" 'iommu=no-intremap' 'ats=0'")
    assert lines[1].startswith("module2 (hd0,msdos1)/vmlinuz placeholder 'console=hvc0' ")
    assert lines[1].endswith(" 'a=b'")
    assert lines[2:4] == ["module2 (hd0,msdos1)/initrd", "boot"]
    assert "acpi" not in "".join(lines)


def test_without_its_table_nothing_is_booted() -> None:
    lines = grub_commands(plan_of(dmar=TABLE), initrd=False).splitlines()
    assert lines[0] == "if acpi --exclude=DMAR (hd0,msdos1)/dmar.aml; then"
    assert lines[-3:] == ["boot", "fi", "echo GRUB could not boot the machine"]
    assert "'acpi_rsdp=0x9f100'" in lines[2]
    assert not any("initrd" in line for line in lines)


def test_a_word_that_would_end_its_quotation_is_refused() -> None:
    with pytest.raises(HostError, match="cannot be told to GRUB"):
        grub_commands(plan_of(kernel_args=("a='; reboot",)), initrd=True)


@pytest.mark.parametrize(
    ("said", "fine"),
    [
        (f"(XEN) ACPI: DMAR 7FF47A4F, 0064 (r1 HARNSS {oem_table_id(TABLE)}        1 HRNS        1)\n", True),
        ("(XEN) ACPI: DMAR 7FF47A4F, 0064 (r1 HARNSS 00000000        1 HRNS        1)\n", False),
        ("(XEN) ACPI: DMAR 7FF47A4F, 0064 (r1 BOCHS  BXPC            1 BXPC        1)\n", False),
        ("", False),
    ],
)
def test_another_table_than_the_scenarios_is_noticed(tmp_path: Path, said: str, fine: bool) -> None:
    (tmp_path / "log").write_text(said)
    console = Console("dom0", "linux", tmp_path / "log")
    check_table(None, console)
    if fine:
        check_table(TABLE, console)
    else:
        with pytest.raises(BootError, match=oem_table_id(TABLE)):
            check_table(TABLE, console)


def test_drives_are_told_apart_by_their_names(tmp_path: Path) -> None:
    write_drive(tmp_path / "one", 1 << 20)
    assert (tmp_path / "one").read_bytes() == contents("one", 1 << 20)
    assert contents("one", 1 << 20)[:512].rstrip(b"\0") == b"one"
    assert len(contents("two", 1 << 20)) == 1 << 20
    assert contents("two", 1 << 20)[512:] != contents("one", 1 << 20)[512:]
