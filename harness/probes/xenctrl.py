"""Xen's console ring and its debug keys, through the library that ``xl`` itself uses, without a process for each call.

Interface: xenctrl.h, ``xc_readconsolering`` and ``xc_send_debug_keys``, in Xen's source. The library's version is
Xen's own: there is one at most.
"""

from __future__ import annotations

import ctypes
import glob
import time

_LIBRARY = "/usr/lib/*/libxenctrl.so.*"
_CHUNK = 1 << 16
_LOOK_S = 0.01


class Console:
    """What Xen has said, from now on.

    :raises OSError: there is no such library, or this domain may not ask.
    """

    def __init__(self) -> None:
        found = sorted(glob.glob(_LIBRARY))
        if not found:
            raise FileNotFoundError(f"no {_LIBRARY}")
        self._library = ctypes.CDLL(found[0], use_errno=True)
        self._library.xc_interface_open.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(self._library.xc_interface_open(None, None, 0))
        if not self._handle:
            raise self._error("xc_interface_open")
        self._index = ctypes.c_uint32(0)
        self.read()

    def close(self) -> None:
        """Give the handle back."""
        self._library.xc_interface_close(self._handle)

    def read(self) -> str:
        """What Xen has said since the last call; without its beginning, if the ring has lost that meanwhile."""
        said = bytearray()
        # Xen moves the index to the end of what it gives, and goes on with the oldest where others are overwritten.
        buffer = ctypes.create_string_buffer(_CHUNK)
        while True:
            count = ctypes.c_uint(_CHUNK)
            arguments = (buffer, ctypes.byref(count), 0, 1, ctypes.byref(self._index))
            if self._library.xc_readconsolering(self._handle, *arguments):
                raise self._error("xc_readconsolering")
            said += buffer.raw[: count.value]
            if not count.value:
                return said.decode(errors="replace")

    def press(self, key: str, end: str, timeout_s: float) -> str:
        """Press a debug key and wait for the end of what it prints.

        :param end: what its last line has.
        :raises TimeoutError: that does not come.
        """
        self.read()
        if self._library.xc_send_debug_keys(self._handle, key.encode()):
            raise self._error("xc_send_debug_keys")
        printed = ""
        deadline = time.monotonic() + timeout_s
        while end not in printed:
            if time.monotonic() > deadline:
                raise TimeoutError(f"debug key {key} printed no end: {printed[-400:]}")
            printed += self.read()
            if end not in printed:
                time.sleep(_LOOK_S)
        return printed

    def _error(self, function: str) -> OSError:
        code = ctypes.get_errno()
        return OSError(code, f"{function}: error {code}")
