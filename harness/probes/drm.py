"""A client of a DRM device by raw ioctls, in a process of its own: dumb buffers, framebuffers, a mode, page flips.

Numbers and layouts: include/uapi/drm/drm.h and drm_mode.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.probes import kernel_log, pgdir
    from harness.probes.worker import Keeper

    Answer = dict[str, Any]
else:  # beside this file, in the guest
    import kernel_log
    import pgdir
    from worker import Keeper

VERSION = 0xC0406400
GETRESOURCES, SETCRTC, GETCONNECTOR = 0xC04064A0, 0xC06864A2, 0xC05064A7
RMFB, PAGE_FLIP, ADDFB2 = 0xC00464AF, 0xC01864B0, 0xC06864B8
CREATE_DUMB, MAP_DUMB, DESTROY_DUMB = 0xC02064B2, 0xC01064B3, 0xC00464B4
_FLIP_EVENT = 1
_FLIP_COMPLETE = 2
_XRGB8888 = 0x34325258
_MODE = struct.Struct("<I10HIII32s")  # struct drm_mode_modeinfo


class _Buffer:
    def __init__(self, handle: int, width: int, height: int, pitch: int, size: int) -> None:
        self.handle, self.width, self.height, self.pitch, self.size = handle, width, height, pitch, size
        self.memory: mmap.mmap | None = None
        self.framebuffer = 0


class Display:
    """An open DRM device, with what was made through it."""

    def __init__(self) -> None:
        # A device that comes while an older one is still open has another number.
        card = max(name for name in os.listdir("/dev/dri") if name.startswith("card"))
        self._fd = os.open(f"/dev/dri/{card}", os.O_RDWR | os.O_CLOEXEC)
        self._buffers: dict[str, _Buffer] = {}
        self._crtc = self._connector = 0
        self._mode = b""

    def waits(self) -> tuple[list[int], float | None]:
        """See :class:`worker.Session`."""
        return [], None

    def turn(self) -> None:
        """Nothing happens between calls."""

    def identify(self) -> Answer:
        """The driver's name and description."""
        name, about = ctypes.create_string_buffer(64), ctypes.create_string_buffer(128)
        request = bytearray(
            struct.pack("<iii4xQQQQQQ", 0, 0, 0, 63, ctypes.addressof(name), 0, 0, 127, ctypes.addressof(about))
        )
        fcntl.ioctl(self._fd, VERSION, request)
        return {"driver": name.value.decode(), "about": about.value.decode()}

    # -- buffers

    def create(self, buffer: str, width: int, height: int, bpp: int) -> Answer:
        """DRM_IOCTL_MODE_CREATE_DUMB, and a mapping of it."""
        request = bytearray(struct.pack("<IIIIIIQ", height, width, bpp, 0, 0, 0, 0))
        answer = self._try(CREATE_DUMB, request)
        handle, pitch, size = struct.unpack_from("<IIQ", request, 16)
        if not answer["error"]:
            self._buffers[buffer] = _Buffer(handle, width, height, pitch, size)
        return {**answer, "pitch": pitch, "size": size}

    def map(self, buffer: str) -> Answer:
        """DRM_IOCTL_MODE_MAP_DUMB and mmap; the driver maps all pages at once."""
        made = self._buffers[buffer]
        request = bytearray(struct.pack("<IIQ", made.handle, 0, 0))
        fcntl.ioctl(self._fd, MAP_DUMB, request)
        offset = struct.unpack_from("<Q", request, 8)[0]
        made.memory = mmap.mmap(self._fd, pgdir.pages_of(made.size) * pgdir.PAGE, mmap.MAP_SHARED, offset=offset)
        return {}

    def fill(self, buffer: str, seed: int) -> Answer:
        """Write a pattern into a buffer."""
        pgdir.fill(self._memory(buffer), self._buffers[buffer].size, seed)
        return {}

    def compare(self, buffer: str, seed: int) -> Answer:
        """Compare every byte of a buffer with a pattern."""
        return {**pgdir.compare(self._memory(buffer), self._buffers[buffer].size, seed)}

    def _memory(self, buffer: str) -> mmap.mmap:
        if self._buffers[buffer].memory is None:
            self.map(buffer)
        memory = self._buffers[buffer].memory
        assert memory is not None
        return memory

    def destroy(self, buffer: str) -> Answer:
        """Unmap a buffer and DRM_IOCTL_MODE_DESTROY_DUMB."""
        made = self._buffers.pop(buffer)
        if made.memory is not None:
            made.memory.close()
        return self._try(DESTROY_DUMB, bytearray(struct.pack("<I", made.handle)))

    def cycle(self, count: int, pages: int) -> Answer:
        """Create and destroy a buffer again and again; gives how often it failed, and by what slabs grew."""
        before, failed = _slab_kib(), 0
        for _ in range(count):
            made = self.create("cycle", pgdir.PAGE // 4, pages, 32)
            failed += bool(made["error"]) or bool(self.destroy("cycle")["error"])
        return {"failed": failed, "slab_kib": _slab_kib() - before}

    # -- showing

    def show(self, buffer: str) -> Answer:
        """Make a framebuffer of a buffer, and set the connector's own mode with it."""
        if not self._crtc:
            self._find_connector()
        answer = self._add_framebuffer(buffer)
        if answer["error"]:
            return answer
        connector = ctypes.c_uint32(self._connector)
        request = struct.pack(
            "<QIIIIIII",
            ctypes.addressof(connector), 1, self._crtc, self._buffers[buffer].framebuffer, 0, 0, 0, 1,
        )  # fmt: skip
        return self._try(SETCRTC, bytearray(request + self._mode))

    def _add_framebuffer(self, buffer: str) -> Answer:
        made = self._buffers[buffer]
        request = bytearray(104)
        struct.pack_into("<IIIII", request, 0, 0, made.width, made.height, _XRGB8888, 0)
        struct.pack_into("<I", request, 20, made.handle)
        struct.pack_into("<I", request, 36, made.pitch)
        answer = self._try(ADDFB2, request)
        made.framebuffer = struct.unpack_from("<I", request)[0]
        return answer

    def _find_connector(self) -> None:
        crtcs, connectors = (ctypes.c_uint32 * 4)(), (ctypes.c_uint32 * 4)()
        request = bytearray(
            struct.pack("<4Q8I", 0, ctypes.addressof(crtcs), ctypes.addressof(connectors), 0, 0, 4, 4, 0, 0, 0, 0, 0)
        )
        fcntl.ioctl(self._fd, GETRESOURCES, request)
        modes = ctypes.create_string_buffer(_MODE.size * 8)
        asked = bytearray(80)
        struct.pack_into("<I", asked, 48, connectors[0])
        fcntl.ioctl(self._fd, GETCONNECTOR, asked)  # the first call makes the kernel probe
        asked = bytearray(80)
        struct.pack_into("<QQ", asked, 0, 0, ctypes.addressof(modes))
        struct.pack_into("<I", asked, 32, 8)
        struct.pack_into("<I", asked, 48, connectors[0])
        fcntl.ioctl(self._fd, GETCONNECTOR, asked)
        if not struct.unpack_from("<I", asked, 32)[0]:
            raise OSError(errno.ENODEV, "the connector has no mode")
        self._crtc, self._connector = crtcs[0], connectors[0]
        self._mode = modes.raw[: _MODE.size]

    def flip(self, buffers: list[str], count: int, timeout_s: float) -> Answer:
        """Flip between buffers, each time with an event, and wait for it; buffers become framebuffers at first use.

        Gives the error of each flip that was refused, how many events came with the right mark, and the slowest.
        """
        errors: list[str] = []
        events = late = 0
        slowest = 0.0
        for buffer in buffers:
            if not self._buffers[buffer].framebuffer:
                self._add_framebuffer(buffer)
        for number in range(count):
            framebuffer = self._buffers[buffers[number % len(buffers)]].framebuffer
            started = time.monotonic()
            request = bytearray(struct.pack("<IIIIQ", self._crtc, framebuffer, _FLIP_EVENT, 0, number))
            answer = self._try(PAGE_FLIP, request)
            if answer["error"]:
                errors.append(answer["error"])
                continue
            if number in self._events(timeout_s):
                events += 1
            else:
                late += 1
            slowest = max(slowest, time.monotonic() - started)
        return {"errors": errors, "events": events, "missing": late, "slowest_s": round(slowest, 3)}

    def _events(self, timeout_s: float) -> list[int]:
        """The marks of the flips that are complete."""
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return []
        data = os.read(self._fd, 4096)
        marks = []
        while data:
            kind, length, mark = struct.unpack_from("<IIQ", data)
            if kind == _FLIP_COMPLETE:
                marks.append(mark)
            data = data[length:]
        return marks

    def unshow(self, buffer: str) -> Answer:
        """DRM_IOCTL_MODE_RMFB: take a buffer's framebuffer away, and with it what shows it."""
        made = self._buffers[buffer]
        answer = self._try(RMFB, bytearray(struct.pack("<I", made.framebuffer)))
        made.framebuffer = 0
        return answer

    def _try(self, number: int, request: bytearray) -> Answer:
        started = time.monotonic()
        code = 0
        try:
            fcntl.ioctl(self._fd, number, request)
        except OSError as error:
            code = error.errno or -1
        name = errno.errorcode.get(code, str(code)) if code else ""
        return {"error": name, "seconds": round(time.monotonic() - started, 3)}


def _slab_kib() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("SUnreclaim:"))


# -- seen from the agent ----------------------------------------------------------------------------------------

_client = Keeper("the display's client", Display)


def call(operation: str, arguments: Answer) -> Answer:
    """Let the client do something; it is started first if need be. ``died`` names a signal that ended it."""
    return _client.call(operation, arguments)


def heard(operation: str, arguments: Answer) -> Answer:
    """The same, with what the kernel has said meanwhile."""
    kernel_log.new_lines("display")
    answer = call(operation, arguments)
    return {**answer, "kernel_log": kernel_log.new_lines("display")}


def end(kill: bool) -> Answer:
    """End the client; the kernel frees what it held."""
    return _client.end(kill)
