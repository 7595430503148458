"""Page directories, rings, event pages, and the structures that probes hand to the kernel."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.probes import gnttab, pgdir
from harness.probes.xenring import BackRing, EventPage
from tests.unit.probes import imported

PAGE = 4096


alsa, displif, granttab, sndif = map(imported, ("alsa", "displif", "granttab", "sndif"))


# -- directories


def directory(pages: int, *, first: int = 8) -> dict[int, bytes]:
    """What xen-front-pgdir-shbuf makes: references in a row, those of the directory first; page bytes by reference."""
    count = -(-pages // 1023)
    grefs = list(range(first + count, first + count + pages))
    made = {}
    for number in range(count):
        link = first + number + 1 if number < count - 1 else 0
        words = [link, *grefs[number * 1023 : (number + 1) * 1023]]
        made[first + number] = struct.pack("<1024I", *words, *[0] * (1024 - len(words)))
    return made


def read_from(pages: dict[int, bytes]) -> object:
    def read(ref: int) -> bytes:
        if ref not in pages:
            raise OSError(errno.EINVAL, "no such reference")
        return pages[ref]

    return read


def walked(pages: dict[int, bytes], count: int, first: int = 8) -> pgdir.Directory:
    return pgdir.walk(first, count, read_from(pages))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pages", "directories"), [(1, 1), (2, 1), (1022, 1), (1023, 1), (1024, 2), (2046, 2), (2047, 3), (2250, 3)]
)
def test_a_right_directory_is_walked_to_its_end(pages: int, directories: int) -> None:
    found = walked(directory(pages), pages)
    assert found.fault == "" and found.spare_used == 0
    assert pgdir.directory_pages_of(pages) == len(found.refs) == directories
    assert found.links == [*range(9, 8 + directories), 0]
    assert found.grefs == list(range(8 + directories, 8 + directories + pages))


def test_a_directory_that_ends_too_early_says_so() -> None:
    pages = directory(1024)
    pages[8] = struct.pack("<I", 0) + pages[8][4:]
    found = walked(pages, 1024)
    assert found.fault == "the directory ends after 1023 of 1024 pages"
    assert found.links == [0] and len(found.grefs) == 1023


def test_a_directory_that_goes_on_is_followed() -> None:
    pages = directory(1023)
    pages[8] = struct.pack("<I", 9) + pages[8][4:]
    pages[9] = bytes(PAGE)
    found = walked(pages, 1023)
    assert found.links == [9, 0] and found.fault == ""


def test_links_that_lead_back_end_the_walk() -> None:
    pages = directory(1)
    pages[8] = struct.pack("<I", 8) + pages[8][4:]
    assert walked(pages, 1).fault == "the links lead back to 8"


def test_a_reference_that_cannot_be_mapped_ends_the_walk() -> None:
    pages = directory(1024)
    del pages[9]
    assert walked(pages, 1024).fault == "cannot map directory page 2, reference 9: no such reference"


def test_words_behind_the_last_reference_are_counted() -> None:
    pages = directory(1)
    pages[8] = pages[8][:8] + struct.pack("<II", 7, 7) + pages[8][16:]
    assert walked(pages, 1).spare_used == 2


@given(st.integers(1, 5000))
def test_what_a_backend_fills_in_is_what_a_walk_finds(pages: int) -> None:
    grefs = list(range(50_000, 50_000 + pages))
    count = pgdir.directory_pages_of(pages)
    memory = bytearray(PAGE * count)
    for number in range(count - 1):
        struct.pack_into("<I", memory, number * PAGE, 8 + number + 1)
    pgdir.fill_directory(grefs, memory)
    made = {8 + number: bytes(memory[number * PAGE : (number + 1) * PAGE]) for number in range(count)}
    found = walked(made, pages)
    assert found.grefs == grefs and found.fault == "" and len(found.links) == count


# -- bytes


@given(st.integers(0, 3 * PAGE), st.integers(1, 2 * PAGE))
def test_a_part_of_a_buffer_has_the_same_pattern_as_the_whole(offset: int, size: int) -> None:
    whole, part = bytearray(5 * PAGE), bytearray(5 * PAGE)
    pgdir.fill(whole, 5 * PAGE, 7)
    pgdir.fill(part, size, 7, offset)
    assert part[offset : offset + size] == whole[offset : offset + size]
    assert not any(part[:offset]) and not any(part[offset + size :])
    assert pgdir.compare(whole, size, 7, offset)["wrong"] == 0


def test_every_wrong_byte_is_counted() -> None:
    memory = bytearray(3 * PAGE)
    pgdir.fill(memory, 3 * PAGE, 1)
    memory[PAGE + 5] ^= 1
    memory[2 * PAGE] ^= 0x80
    wanted = {"bytes": 3 * PAGE, "wrong": 2, "wrong_pages": 2, "first_wrong_page": 1}
    assert pgdir.compare(memory, 3 * PAGE, 1) == wanted


def test_swapped_pages_are_wrong() -> None:
    memory = bytearray(2 * PAGE)
    pgdir.fill(memory, 2 * PAGE, 1)
    memory[:] = memory[PAGE:] + memory[:PAGE]
    assert pgdir.compare(memory, 2 * PAGE, 1)["wrong_pages"] == 2


# -- rings


def words(memory: bytearray, count: int = 4) -> list[int]:
    return list(struct.unpack_from(f"<{count}I", memory))


def test_requests_are_taken_in_order_and_the_next_one_is_awaited() -> None:
    memory = bytearray(PAGE)
    memory[64:67], memory[128:131] = b"one", b"two"
    struct.pack_into("<I", memory, 0, 2)
    ring = BackRing(memory)
    assert [request[:3] for request in ring.requests()] == [b"one", b"two"]
    assert ring.requests() == []
    assert words(memory) == [2, 3, 0, 0]


def test_a_ring_wraps_in_slots_and_in_counters() -> None:
    memory = bytearray(PAGE)
    struct.pack_into("<4I", memory, 0, 1, 0, 0xFFFFFFFF, 0)
    memory[64 + 31 * 64] = 5
    ring = BackRing(memory)
    taken = ring.requests()
    assert [request[0] for request in taken] == [5, 0]
    assert ring.respond(b"a") is True  # rsp_event is the 0 that rsp_prod becomes
    assert ring.respond(b"b") is False
    assert memory[64 + 31 * 64] == ord("a") and memory[64] == ord("b")
    assert words(memory)[2] == 1


def test_a_frontend_that_claims_too_much_is_refused() -> None:
    memory = bytearray(PAGE)
    struct.pack_into("<I", memory, 0, 33)
    with pytest.raises(ValueError, match="33 requests on a ring of 32"):
        BackRing(memory).requests()


def test_events_wait_until_they_are_taken() -> None:
    memory = bytearray(PAGE)
    events = EventPage(memory)
    for number in range(63):
        events.put(bytes([number]))
    assert events.pending == 63 and memory[64 + 62 * 64] == 62
    with pytest.raises(ValueError, match="full"):
        events.put(b"")
    struct.pack_into("<I", memory, 0, 1)
    events.put(b"\xff")
    assert memory[64] == 0xFF and words(memory, 2) == [1, 64]


# -- structures


def test_grant_requests_have_the_kernels_layout() -> None:
    assert gnttab.map_request(3, [8, 9]) == struct.pack("<IIQIIII", 2, 0, 0, 3, 8, 3, 9)
    assert gnttab.alloc_request(3, 2) == struct.pack("<HHIQII", 3, 1, 2, 0, 0, 0)


def test_sound_parameters_have_the_kernels_layout() -> None:
    request = alsa.hw_params(256, 1024)
    assert len(request) == 608
    assert struct.unpack_from("<Q", request, 4)[0] == 1 << 3  # access
    assert struct.unpack_from("<Q", request, 36)[0] == 1 << 2  # format
    intervals = [struct.unpack_from("<III", request, 260 + 12 * number) for number in range(12)]
    assert intervals[2] == (2, 2, 4) and intervals[3] == (48000, 48000, 4)
    assert intervals[5] == (256, 256, 4) and intervals[9] == (1024, 1024, 4)
    assert intervals[0] == (0, 0xFFFFFFFF, 0)
    assert struct.unpack_from("<I", request, 512)[0] == 0xFFFFFFFF  # rmask
    assert len(alsa.sw_params()) == 136


def test_a_stream_takes_one_call_after_the_other_whatever_comes_of_each() -> None:
    calls = [("prepare", {"stream": "playback"}), ("close", {"stream": "capture"})]
    assert alsa.Streams().each(calls) == {"answers": [{"error": "EBADF"}, {"error": "EBADF"}]}


def test_protocols_speak_the_headers_numbers() -> None:
    assert displif.CREATE == 0x10 and displif.FLIP == 0x15
    assert (sndif.OPEN, sndif.CLOSE, sndif.READ, sndif.WRITE) == (0, 1, 2, 3)
    assert sndif.position(0x1122334455) == b"\0" + bytes(5) + struct.pack("<Q", 0x1122334455)
    assert displif.Display.operations[0x12] == "fb_attach"


# -- the hypervisor's view


def test_a_grant_table_is_counted() -> None:
    entries = [(1, 0, 77), (1 | 8 | 16, 0, 78), (0, 0, 0), (1 | 8, 3, 77)]
    table = b"".join(struct.pack("<HHI", *entry) for entry in entries).ljust(PAGE, b"\0")
    assert granttab.counted(table) == {"live": 3, "mapped": 2, "frames": 2, "to_others": 1}


PRINTED = """\
(XEN) [   61.1] gnttab_usage_print_all [ key 'g' pressed
(XEN) [   61.1]       -------- active --------       -------- shared --------
(XEN) [   61.1] [ref] localdom mfn      pin          localdom gmfn     flags
(XEN) [   61.1] grant-table for remote d0 (v1)
(XEN) [   61.1]   1 frames (64 max), 1 maptrack frames (1024 max)
(XEN) [   61.1] no active grant table entries
(XEN) [   61.1] grant-table for remote d1 (v1)
(XEN) [   61.1]   1 frames (64 max), 0 maptrack frames (1024 max)
(XEN) [   61.1] [0x000]      0 0x7ffe4 0x00000001          0 0x07ffe4 0x19
(XEN) [   61.1] [0x00b]      0 0x7ffe5 0x00000001          0 0x07ffe5 0x19
(XEN) [   61.1] grant-table for remote d10 (v1)
(XEN) [   61.1] [0x001]      0 0x7ffe5 0x00000001          0 0x07ffe5 0x19
(XEN) [   61.1] gnttab_usage_print_all ] done
"""


def test_the_debug_key_is_read_for_one_domain() -> None:
    assert granttab.active_refs(PRINTED, 1) == [0, 11]
    assert granttab.active_refs(PRINTED, 0) == []
    assert granttab.active_refs(PRINTED, 10) == [1]


def test_what_xen_could_not_keep_of_the_debug_key_is_no_empty_table() -> None:
    with pytest.raises(ValueError, match="domain 0 is lost"):
        granttab.active_refs(PRINTED.partition("remote d0")[2], 0)
