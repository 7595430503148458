"""A client of an ALSA PCM by raw ioctls, in a process of its own: parameters, frames, triggers.

Numbers and layouts: include/uapi/sound/asound.h. Samples are S16_LE, two channels, 48 kHz: a frame is 4 bytes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.probes import pgdir
    from harness.probes.worker import Keeper

    Answer = dict[str, Any]
else:  # beside this file, in the guest
    import pgdir
    from worker import Keeper

HW_PARAMS, HW_FREE, SW_PARAMS = 0xC2604111, 0x4112, 0xC0884113
DELAY, HWSYNC = 0x80084121, 0x4122
PREPARE, START, DROP = 0x4140, 0x4142, 0x4143
WRITEI, READI = 0x40184150, 0x80184151
FRAME = 4
_RATE, _CHANNELS = 48000, 2
_NOT_OPEN = 1 << 30  # a file descriptor that no process has: EBADF
_NEVER = 1 << 62  # frames: a threshold that no stream reaches
_ACCESS_RW_INTERLEAVED, _FORMAT_S16_LE = 3, 2
# SNDRV_PCM_HW_PARAM_*: intervals are numbered from 8
_FIRST_INTERVAL, _INTERVALS = 8, 12
_CHANNELS_PARAM, _RATE_PARAM, _PERIOD_SIZE_PARAM, _BUFFER_SIZE_PARAM = 10, 11, 13, 17


def hw_params(period_frames: int, buffer_frames: int) -> bytearray:
    """``struct snd_pcm_hw_params``: three masks, room for five, twelve intervals, room for nine, and the rest.

    A mask is 256 bits; an interval is a minimum, a maximum and flags, of which 4 says that it is of integers.
    """
    fixed = {
        _CHANNELS_PARAM: _CHANNELS,
        _RATE_PARAM: _RATE,
        _PERIOD_SIZE_PARAM: period_frames,
        _BUFFER_SIZE_PARAM: buffer_frames,
    }
    every = b"\xff" * 32
    masks = [(1 << bit).to_bytes(32, "little") for bit in (_ACCESS_RW_INTERLEAVED, _FORMAT_S16_LE)]
    intervals = [
        struct.pack("<III", fixed[number], fixed[number], 4)
        if number in fixed
        else struct.pack("<III", 0, 0xFFFFFFFF, 0)
        for number in range(_FIRST_INTERVAL, _FIRST_INTERVAL + _INTERVALS)
    ]
    request = struct.pack("<I", 0) + b"".join(masks) + every + every * 5 + b"".join(intervals) + bytes(9 * 12)
    return bytearray(request + struct.pack("<I", 0xFFFFFFFF)).ljust(608, b"\0")


def sw_params() -> bytearray:
    """``struct snd_pcm_sw_params``: nothing starts or stops by itself."""
    request = struct.pack("<iII4xQQQQQQQ", 0, 1, 0, 1, 1, _NEVER, _NEVER, 0, 0, 0)
    return bytearray(request).ljust(136, b"\0")


class Streams:
    """Open PCM streams: ``playback`` and ``capture`` of one card."""

    _DEVICES = {"playback": "/dev/snd/pcmC0D0p", "capture": "/dev/snd/pcmC0D0c"}

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def waits(self) -> tuple[list[int], float | None]:
        """See :class:`worker.Session`."""
        return [], None

    def turn(self) -> None:
        """Nothing happens between calls."""

    def identify(self) -> Answer:
        """The driver's name and the card's."""
        with open("/proc/asound/cards") as file:
            line = file.readline()
        return {"driver": line.partition("]: ")[2].partition(" - ")[0], "about": line.strip()}

    def open(self, stream: str) -> Answer:
        """Open a stream; nothing blocks."""
        code = 0
        try:
            flags = os.O_WRONLY if stream == "playback" else os.O_RDONLY
            self._fds[stream] = os.open(self._DEVICES[stream], flags | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            code = error.errno or -1
        return _outcome(code)

    def params(self, stream: str, size: int, periods: int) -> Answer:
        """HW_PARAMS: a buffer of ``size`` bytes in so many periods; then nothing starts or stops by itself."""
        frames = size // FRAME
        answer = self._try(stream, HW_PARAMS, hw_params(frames // periods, frames))
        if not answer["error"]:
            self._sizes[stream] = size
            answer = self._try(stream, SW_PARAMS, sw_params())
        return answer

    def prepare(self, stream: str) -> Answer:
        """PREPARE: the frontend opens the stream at its backend."""
        return self._try(stream, PREPARE)

    def write(self, stream: str, seed: int) -> Answer:
        """WRITEI: the pattern, as much as the buffer holds."""
        size = self._sizes[stream]
        data = ctypes.create_string_buffer(size)
        view = memoryview(data).cast("B")
        pgdir.fill(view, size, seed)
        request = bytearray(struct.pack("<qQQ", 0, ctypes.addressof(data), size // FRAME))
        answer = self._try(stream, WRITEI, request)
        return {**answer, "frames": struct.unpack_from("<q", request)[0]}

    def read(self, stream: str, seed: int, size: int, offset: int) -> Answer:
        """READI: as many bytes as asked for, compared with the pattern as it goes on from ``offset``."""
        data = ctypes.create_string_buffer(offset + size)
        self._try(stream, HWSYNC)
        request = bytearray(struct.pack("<qQQ", 0, ctypes.addressof(data) + offset, size // FRAME))
        answer = self._try(stream, READI, request)
        frames = struct.unpack_from("<q", request)[0]
        return {**answer, "frames": frames, **pgdir.compare(memoryview(data).cast("B"), size, seed, offset)}

    def start(self, stream: str) -> Answer:
        """START."""
        return self._try(stream, START)

    def drop(self, stream: str) -> Answer:
        """DROP: stop at once."""
        return self._try(stream, DROP)

    def delay(self, stream: str) -> Answer:
        """How many frames the application is ahead of the device, by what the backend has told."""
        self._try(stream, HWSYNC)
        request = bytearray(8)
        answer = self._try(stream, DELAY, request)
        return {**answer, "frames": struct.unpack("<q", request)[0]}

    def free(self, stream: str) -> Answer:
        """HW_FREE: the frontend closes the stream at its backend and frees the buffer."""
        return self._try(stream, HW_FREE)

    def close(self, stream: str) -> Answer:
        """Close a stream."""
        fd = self._fds.pop(stream, -1)
        if fd < 0:
            return _outcome(errno.EBADF)
        os.close(fd)
        return _outcome(0)

    def each(self, calls: list[tuple[str, Answer]]) -> Answer:
        """Do one thing after the other, whatever comes of each."""
        return {"answers": [getattr(self, operation)(**arguments) for operation, arguments in calls]}

    def _try(self, stream: str, number: int, request: bytearray | None = None) -> Answer:
        code = 0
        try:
            fcntl.ioctl(self._fds.get(stream, _NOT_OPEN), number, 0 if request is None else request)
        except OSError as error:
            code = error.errno or -1
        return _outcome(code)


def _outcome(code: int) -> Answer:
    return {"error": errno.errorcode.get(code, str(code)) if code else ""}


# -- seen from the agent ----------------------------------------------------------------------------------------

_client = Keeper("the sound card's client", Streams)


def call(operation: str, arguments: Answer) -> Answer:
    """Let the client do something; it is started first if need be. ``died`` names a signal that ended it."""
    return _client.call(operation, arguments)


def end(kill: bool) -> Answer:
    """End the client; the kernel frees what it held."""
    return _client.end(kill)
