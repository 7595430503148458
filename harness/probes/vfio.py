"""VFIO on sPAPR TCE IOMMUs, by raw ioctls, in processes of their own.

A *holder* is a forked child that holds containers, groups, devices and memory: its limits can be lowered, and it can be
killed with all that it holds. Every call says what the ioctl returned (positive values too: the kernel leaks some), its
errno, the holder's locked memory before and after, and what the kernel logged meanwhile.

Numbers and layouts: include/uapi/linux/vfio.h; powerpc's _IO() sets a direction bit
(arch/powerpc/include/uapi/asm/ioctl.h).
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from typing import Any, TextIO

    Answer = dict[str, Any]
    Argument = int | ctypes.Array[ctypes.c_char] | ctypes.c_int

PAGE = mmap.PAGESIZE
_IO = 0x20003B64  # _IO(';', 100) on powerpc
_LIBC = ctypes.CDLL(None, use_errno=True)

GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU = _IO, _IO + 1, _IO + 2
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER, GROUP_GET_DEVICE_FD = _IO + 3, _IO + 4, _IO + 5, _IO + 6
DEVICE_GET_REGION_INFO = _IO + 8
TCE_GET_INFO, MAP_DMA, UNMAP_DMA, ENABLE, DISABLE = _IO + 12, _IO + 13, _IO + 14, _IO + 15, _IO + 16
REGISTER_MEMORY, UNREGISTER_MEMORY, TCE_CREATE, TCE_REMOVE, EEH_PE_OP = _IO + 17, _IO + 18, _IO + 19, _IO + 20, _IO + 21

_CONFIG_OFFSET = 7 << 40  # vfio-pci: region 7 is the configuration space
_PCI_COMMAND = 4
_MEMORY_AND_MASTER = 6
_CAP_IPC_LOCK = 14
_DEVICES = "/sys/bus/pci/devices"

# docs/specs/edu.txt of QEMU
EDU_ID, EDU_SOURCE, EDU_TARGET, EDU_COUNT, EDU_COMMAND = 0x00, 0x80, 0x88, 0x90, 0x98
EDU_BUFFER, EDU_BUFFER_BYTES = 0x40000, 4096
EDU_IDENTITY = 0x010000ED
_EDU_START, _EDU_FROM_DEVICE = 1, 2


# -- PCI devices ------------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _address(device: str) -> str:
    """``edu2`` is the second edu device by PCI address, ``sibling`` the device that shares the third one's bridge."""
    found = sorted(os.listdir(_DEVICES))
    edus = [name for name in found if _read(f"{_DEVICES}/{name}/vendor") == "0x1234"]
    if device == "sibling":
        return next(name for name in found if name[:4] == edus[2][:4] and name not in edus)
    return edus[int(device.removeprefix("edu")) - 1]


def _driver(address: str) -> str:
    link = f"{_DEVICES}/{address}/driver"
    return os.path.basename(os.readlink(link)) if os.path.exists(link) else ""


def _group(address: str) -> int:
    link = f"{_DEVICES}/{address}/iommu_group"
    return int(os.path.basename(os.readlink(link))) if os.path.exists(link) else -1


def bind(device: str, driver: str) -> Answer:
    """Give a device to a driver; an empty name takes it from whichever it has. Says what it has then."""
    address = _address(device)
    directory = f"{_DEVICES}/{address}"
    if _driver(address):
        _write(f"{directory}/driver/unbind", address)
    failure = 0
    if driver:
        _write(f"{directory}/driver_override", driver)
        try:
            _write("/sys/bus/pci/drivers_probe", address)
        except OSError as error:
            failure = error.errno or -1
    else:
        _write(f"{directory}/driver_override", "\n")
    return {"address": address, "driver": _driver(address), "group": _group(address), "errno": failure}


# -- holders, seen from the agent -------------------------------------------------------------------------------

_holders: dict[str, tuple[int, TextIO]] = {}  # name: (pid, stream to it)
_kernel_log: int | None = None


def _new_kernel_lines() -> list[str]:
    """What the kernel logged since the last call, without its prefix."""
    global _kernel_log
    if _kernel_log is None:
        _kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(_kernel_log, 0, os.SEEK_END)
        return []
    lines: list[str] = []
    while True:
        try:
            record = os.read(_kernel_log, 8192)
        except BlockingIOError:
            return lines
        lines.append(record.decode(errors="replace").partition(";")[2].splitlines()[0])


def hold(holder: str, memlock_bytes: int | None = None, ipc_lock: bool = True) -> Answer:
    """Fork a holder, with a limit on locked memory and without CAP_IPC_LOCK if so asked."""
    _new_kernel_lines()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            for _, stream in _holders.values():
                stream.close()
            if memlock_bytes is not None:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock_bytes, memlock_bytes))
            if not ipc_lock:
                _drop_ipc_lock()
            _serve(theirs.makefile("rw"))
        finally:
            os._exit(0)
    theirs.close()
    _holders[holder] = (pid, ours.makefile("rw"))
    ours.close()
    return {"pid": pid}


def _drop_ipc_lock() -> None:
    """capset(2) with version 3 of its header (include/uapi/linux/capability.h)."""
    header = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    if _LIBC.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    low = list(struct.unpack_from("=III", data.raw, 0))
    struct.pack_into("=III", data, 0, *(word & ~(1 << _CAP_IPC_LOCK) for word in low))
    if _LIBC.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def release(holder: str, kill: bool = False) -> Answer:
    """End a holder: by closing all it holds and exiting, or by SIGKILL with everything alive."""
    pid, stream = _holders.pop(holder)
    if kill:
        os.kill(pid, signal.SIGKILL)
    stream.close()
    os.waitpid(pid, 0)
    return {"kernel_log": _new_kernel_lines()}


def call(holder: str, operation: str, **arguments: object) -> Answer:
    """Let a holder do something; one that is not there yet is forked."""
    if holder not in _holders:
        hold(holder)
    _new_kernel_lines()
    stream = _holders[holder][1]
    stream.write(json.dumps([operation, arguments]) + "\n")
    stream.flush()
    answer: Answer = json.loads(stream.readline() or '{"failure": "the holder died"}')
    if "failure" in answer:
        raise RuntimeError(f"{operation}: {answer['failure']}")
    answer["kernel_log"] = _new_kernel_lines()
    return answer


# -- holders, from inside ---------------------------------------------------------------------------------------


def _serve(stream: TextIO) -> None:
    session = _Session()
    for line in stream:
        operation, arguments = json.loads(line)
        try:
            answer = getattr(session, operation)(**arguments)
        except Exception as error:
            answer = {"failure": f"{type(error).__name__}: {error}"}
        stream.write(json.dumps(answer) + "\n")
        stream.flush()


def _locked_kib() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmLck"))


def _ioctl(fd: int, number: int, argument: Argument = 0) -> Answer:
    """Call ioctl(2) itself: Python's own hides positive results and retries EINTR."""
    before = _locked_kib()
    pointer = argument if isinstance(argument, int) else ctypes.addressof(argument)
    ctypes.set_errno(0)
    result = _LIBC.ioctl(ctypes.c_int(fd), ctypes.c_ulong(number), ctypes.c_ulong(pointer))
    code = ctypes.get_errno() if result == -1 else 0
    return {
        "result": result,
        "errno": code,
        "error": errno.errorcode.get(code, str(code)) if code else "",
        "locked_before_kib": before,
        "locked_after_kib": _locked_kib(),
    }


def _pack(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack(layout, *values))


def _opened(fd: int) -> Answer:
    return {"result": fd, "errno": 0, "error": "", "locked_before_kib": 0, "locked_after_kib": 0}


class _Session:
    """What one holder holds. Everything goes when the process does."""

    def __init__(self) -> None:
        self.containers: dict[str, int] = {}
        self.groups: dict[str | int, int] = {}
        self.devices: dict[str, _Edu] = {}
        self.memory: dict[str, mmap.mmap] = {}

    # containers

    def open_container(self, container: str) -> Answer:
        self.containers[container] = os.open("/dev/vfio/vfio", os.O_RDWR)
        return _opened(0)

    def close_container(self, container: str) -> Answer:
        os.close(self.containers.pop(container))
        return _opened(0)

    def check_extension(self, container: str, extension: int) -> Answer:
        return _ioctl(self.containers[container], CHECK_EXTENSION, extension)

    def set_iommu(self, container: str, iommu: int) -> Answer:
        return _ioctl(self.containers[container], SET_IOMMU, iommu)

    def enable(self, container: str) -> Answer:
        return _ioctl(self.containers[container], ENABLE)

    def disable(self, container: str) -> Answer:
        return _ioctl(self.containers[container], DISABLE)

    def raw(self, container: str, number: int) -> Answer:
        return _ioctl(self.containers[container], _IO + number)

    def eeh(self, container: str, op: int) -> Answer:
        return _ioctl(self.containers[container], EEH_PE_OP, _pack("=III", 24, 0, op))

    def info(self, container: str, argsz: int) -> Answer:
        buffer = ctypes.create_string_buffer(32)
        struct.pack_into("=I", buffer, 0, argsz)
        answer = _ioctl(self.containers[container], TCE_GET_INFO, buffer)
        fields = struct.unpack("=IIIIQII", buffer.raw)
        names = ("argsz", "flags", "start", "size", "page_sizes", "windows", "levels")
        return {**answer, **dict(zip(names, fields, strict=True))}

    # groups and devices

    def open_group(self, device: str | int) -> Answer:
        group = device if isinstance(device, int) else _group(_address(device))
        try:
            self.groups[device] = os.open(f"/dev/vfio/{group}", os.O_RDWR)
        except OSError as error:
            code = error.errno or -1
            failed = {"result": -1, "errno": code, "error": errno.errorcode.get(code, str(code))}
            return {**_opened(-1), **failed}
        return _opened(0)

    def close_group(self, device: str) -> Answer:
        os.close(self.groups.pop(device))
        return _opened(0)

    def group_status(self, device: str) -> Answer:
        buffer = _pack("=II", 8, 0)
        answer = _ioctl(self.groups[device], GROUP_GET_STATUS, buffer)
        return {**answer, "flags": struct.unpack_from("=I", buffer.raw, 4)[0]}

    def set_container(self, device: str, container: str) -> Answer:
        fd = self.containers.get(container, -1)
        return _ioctl(self.groups[device], GROUP_SET_CONTAINER, ctypes.c_int(fd))

    def unset_container(self, device: str) -> Answer:
        return _ioctl(self.groups[device], GROUP_UNSET_CONTAINER)

    def open_device(self, device: str, group: str | None = None, name: str | None = None) -> Answer:
        buffer = ctypes.create_string_buffer((name or _address(device)).encode())
        answer = _ioctl(self.groups[group or device], GROUP_GET_DEVICE_FD, buffer)
        if answer["result"] >= 0:
            self.devices[device] = _Edu(answer["result"])
            answer["result"] = 0
            answer["identity"] = self.devices[device].identity
        return answer

    def close_device(self, device: str) -> Answer:
        self.devices.pop(device).close()
        return _opened(0)

    # memory

    def allocate(self, memory: str, size: int, huge: bool = False, readable_only: bool = False) -> Answer:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (0x40000 if huge else 0)  # MAP_HUGETLB
        block = mmap.mmap(-1, size, flags=flags)
        block[::PAGE] = b"\0" * len(range(0, size, PAGE))
        self.memory[memory] = block
        if readable_only and _LIBC.mprotect(ctypes.c_void_p(self._at(memory)), ctypes.c_size_t(size), mmap.PROT_READ):
            raise OSError(ctypes.get_errno(), "mprotect")
        return _opened(0)

    def punch(self, memory: str, offset: int, size: int) -> Answer:
        """Unmap a part of a block: an address range with a hole."""
        if _LIBC.munmap(ctypes.c_void_p(self._at(memory) + offset), ctypes.c_size_t(size)):
            raise OSError(ctypes.get_errno(), "munmap")
        return _opened(0)

    def _at(self, memory: str) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory[memory]))

    def fill(self, memory: str, offset: int, size: int, seed: int) -> Answer:
        self.memory[memory][offset : offset + size] = pattern(seed, size)
        return _opened(0)

    def compare(self, memory: str, offset: int, size: int, seed: int) -> Answer:
        """How many bytes of a block are the pattern's."""
        found = self.memory[memory][offset : offset + size]
        same = sum(a == b for a, b in zip(found, pattern(seed, size), strict=True))
        return {**_opened(0), "same": same, "zero": found.count(0)}

    # mappings

    def map(
        self,
        container: str,
        memory: str,
        offset: int,
        iova: int,
        size: int,
        flags: int,
        argsz: int = 32,
        fork: bool = False,
    ) -> Answer:
        request = _pack("=IIQQQ", argsz, flags, self._at(memory) + offset, iova, size)
        return self._maybe_forked(fork, self.containers[container], MAP_DMA, request)

    def unmap(self, container: str, iova: int, size: int, flags: int = 0, argsz: int = 24) -> Answer:
        return _ioctl(self.containers[container], UNMAP_DMA, _pack("=IIQQ", argsz, flags, iova, size))

    def enable_forked(self, container: str) -> Answer:
        return self._maybe_forked(True, self.containers[container], ENABLE, 0)

    def register(self, container: str, memory: str, offset: int, size: int, argsz: int = 24, flags: int = 0) -> Answer:
        request = _pack("=IIQQ", argsz, flags, self._at(memory) + offset, size)
        return _ioctl(self.containers[container], REGISTER_MEMORY, request)

    def unregister(
        self, container: str, memory: str, offset: int, size: int, argsz: int = 24, flags: int = 0
    ) -> Answer:
        request = _pack("=IIQQ", argsz, flags, self._at(memory) + offset, size)
        return _ioctl(self.containers[container], UNREGISTER_MEMORY, request)

    def create_window(
        self, container: str, page_shift: int, window_size: int, levels: int = 1, argsz: int = 40, flags: int = 0
    ) -> Answer:
        buffer = _pack("=IIIIQIIQ", argsz, flags, page_shift, 0, window_size, levels, 0, 0)
        answer = _ioctl(self.containers[container], TCE_CREATE, buffer)
        # start_addr is an unsigned 64-bit number of which bit 59 is set: JSON and CEL hold it exactly
        return {**answer, "start": struct.unpack_from("=Q", buffer.raw, 32)[0] if answer["result"] == 0 else 0}

    def remove_window(self, container: str, start: int, argsz: int = 16, flags: int = 0) -> Answer:
        return _ioctl(self.containers[container], TCE_REMOVE, _pack("=IIQ", argsz, flags, start))

    def _maybe_forked(self, fork: bool, fd: int, number: int, request: Argument) -> Answer:
        """The same ioctl by a child: the kernel ties a container to the address space that set it up."""
        if not fork:
            return _ioctl(fd, number, request)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, json.dumps(_ioctl(fd, number, request)).encode())
            os._exit(0)
        os.close(writer)
        answer: Answer = json.loads(os.read(reader, 65536))
        os.close(reader)
        os.waitpid(pid, 0)
        return answer

    # DMA

    def dma(
        self, device: str, iova: int, size: int, to_device: bool, offset: int = 0, through_bar: bool = False
    ) -> Answer:
        return {**_opened(0), "completed": self.devices[device].dma(iova, size, to_device, offset, through_bar)}


def pattern(seed: int, size: int) -> bytes:
    """Bytes that differ from page to page and from seed to seed, and are never 0."""
    return bytes(1 + (seed * 89 + position * 7 + (position >> 8) * 13) % 255 for position in range(size))


class _Edu:
    """QEMU's ``edu`` device, by way of its VFIO file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        region = _pack("=IIIIQQ", 32, 0, 0, 0, 0, 0)
        if _ioctl(fd, DEVICE_GET_REGION_INFO, region)["result"] != 0:
            raise OSError("VFIO_DEVICE_GET_REGION_INFO failed")
        self.size, self.offset = struct.unpack_from("=QQ", region.raw, 16)
        os.pwrite(fd, struct.pack("<H", _MEMORY_AND_MASTER), _CONFIG_OFFSET + _PCI_COMMAND)
        self.order = "<" if struct.unpack("<I", os.pread(fd, 4, self.offset))[0] == EDU_IDENTITY else ">"
        self.bar: mmap.mmap | None = None

    @property
    def identity(self) -> int:
        return int(struct.unpack(f"{self.order}I", os.pread(self.fd, 4, self.offset + EDU_ID))[0])

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        os.close(self.fd)

    def dma(self, iova: int, size: int, to_device: bool, offset: int, through_bar: bool) -> bool:
        """Move bytes between guest memory and the device's buffer; whether the device says that it is done.

        One byte of the buffer stays out of reach: QEMU 7.2 aborts when a transfer ends exactly at its end.
        """
        if self.identity != EDU_IDENTITY:
            raise ValueError(f"the device does not answer: its identity reads {self.identity:#x}")
        if offset + size >= EDU_BUFFER_BYTES:
            raise ValueError(f"a transfer of {size} bytes at {offset} reaches the end of the device's buffer")
        inside = EDU_BUFFER + offset
        source, target = (iova, inside) if to_device else (inside, iova)
        store = self._store_mapped if through_bar else self._store
        for register, value in ((EDU_SOURCE, source), (EDU_TARGET, target), (EDU_COUNT, size)):
            store(register, value)
        store(EDU_COMMAND, _EDU_START | (0 if to_device else _EDU_FROM_DEVICE))
        for _ in range(500):
            command = struct.unpack(f"{self.order}Q", os.pread(self.fd, 8, self.offset + EDU_COMMAND))[0]
            if not command & _EDU_START:
                return True
            time.sleep(0.01)
        return False

    def _store(self, register: int, value: int) -> None:
        os.pwrite(self.fd, struct.pack(f"{self.order}Q", value), self.offset + register)

    def _store_mapped(self, register: int, value: int) -> None:
        """One 64-bit store through the mapped BAR."""
        if self.bar is None:
            self.bar = mmap.mmap(self.fd, self.size, offset=self.offset)
        word = int.from_bytes(struct.pack(f"{self.order}Q", value), "little")
        ctypes.c_uint64.from_buffer(self.bar, register).value = word
