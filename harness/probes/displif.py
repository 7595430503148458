"""The display protocol of Xen, from the backend's side (include/xen/interface/io/displif.h)."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from typing import Any

    from harness.probes.shbuf import Buffers

CREATE, DESTROY, ATTACH, DETACH, SET_CONFIG, FLIP = range(0x10, 0x16)
FLIP_DONE = 0
_REQ_ALLOC = 1


class Display:
    """A display with one connector."""

    kind = "vdispl"
    operations = {
        CREATE: "dbuf_create",
        DESTROY: "dbuf_destroy",
        ATTACH: "fb_attach",
        DETACH: "fb_detach",
        SET_CONFIG: "set_config",
        FLIP: "page_flip",
    }
    #: Where the frontend publishes each channel, below its own node, and under which names.
    channels = ("0",)
    names = ("req-ring-ref", "req-event-channel", "evt-ring-ref", "evt-event-channel")

    def __init__(self, buffers: Buffers, *, be_alloc: bool, resolution: str) -> None:
        self._buffers = buffers
        self._be_alloc = be_alloc
        self._resolution = resolution
        self._framebuffers: dict[int, tuple[int, int, int, int]] = {}
        self.sends_events = True

    def nodes(self) -> dict[str, str]:
        """What the frontend finds in xenstore."""
        nodes = {"0/resolution": self._resolution, "0/unique-id": "harness"}
        return {**nodes, "be-alloc": "1"} if self._be_alloc else nodes

    def handle(self, channel: int, operation: int, body: bytes) -> tuple[dict[str, Any], bytes, list[bytes]]:  # noqa: ARG002
        """Serve one request: what it said, the body of the response, events to send.

        :raises OSError: whose errno is the response's status.
        """
        if operation == CREATE:
            return self._create(body), b"", []
        cookie = struct.unpack_from("<Q", body)[0]
        if operation == DESTROY:
            self._buffers.close(cookie)
            return {"cookie": cookie}, b"", []
        if operation == ATTACH:
            return self._attach(body), b"", []
        if operation == DETACH:
            self._framebuffers.pop(cookie, None)
            return {"fb": cookie}, b"", []
        if operation == SET_CONFIG:
            x, y, width, height, bpp = struct.unpack_from("<5I", body, 8)
            return {"fb": cookie, "x": x, "y": y, "width": width, "height": height, "bpp": bpp}, b"", []
        events = [struct.pack("<B5xQ", FLIP_DONE, cookie)] if self.sends_events else []
        return {"fb": cookie, "known": cookie in self._framebuffers}, b"", events

    def _create(self, body: bytes) -> dict[str, Any]:
        cookie, width, height, bpp, size, flags, first, offset = struct.unpack_from("<QIIIIIII", body)
        be_alloc = bool(flags & _REQ_ALLOC)
        said = {"cookie": cookie, "width": width, "height": height, "bpp": bpp, "size": size, "offset": offset}
        self._buffers.open(cookie, first, size, be_alloc=be_alloc)
        return {**said, "be_alloc": be_alloc}

    def _attach(self, body: bytes) -> dict[str, Any]:
        dbuf, framebuffer, width, height, pixel_format = struct.unpack_from("<QQIII", body)
        self._framebuffers[framebuffer] = (dbuf, width, height, pixel_format)
        return {"cookie": dbuf, "fb": framebuffer, "width": width, "height": height, "format": pixel_format}

    def clear(self) -> None:
        """Forget the frontend's framebuffers: it is gone."""
        self._framebuffers.clear()
