"""What one process of a guest holds of VFIO, and what can be done with it. See ``vfio.py`` for how it is asked.

Every method is one operation of a holder, and its answer says what the ioctl returned (positive values too: the kernel
leaks some), its errno, and the process's locked memory before and after.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # only a running guest has the probes on its path
    from harness.probes import pci
    from harness.probes import vfio_abi as abi
    from harness.probes.edu import Edu, pattern
    from harness.probes.vfio_abi import Answer, Argument, done, failed, ioctl, pack
else:
    import pci
    import vfio_abi as abi
    from edu import Edu, pattern
    from vfio_abi import done, failed, ioctl, pack

PAGE = mmap.PAGESIZE
_MAP_HUGETLB = 0x40000
_HALF = 1024  # how much a device reads and writes where it is tried; the control page holds two of them


class Session:
    """What one holder holds. Everything goes when the process does."""

    def __init__(self) -> None:
        self.containers: dict[str, int] = {}
        self.groups: dict[str | int, int] = {}
        self.devices: dict[str, Edu] = {}
        self.memory: dict[str, mmap.mmap] = {}
        self.controls: dict[str, tuple[str, int, int]] = {}  # device: (memory, offset, iova)

    def setup(self, container: str, device: str, iommu: int, enable: bool, open_device: bool) -> Answer:
        """Everything from the container's file to the device's, until something fails."""
        steps = [
            ("open_container", (container,)),
            ("open_group", (device,)),
            ("set_container", (device, container)),
            ("set_iommu", (container, iommu)),
        ]
        steps += [("enable", (container,))] if enable else []
        steps += [("open_device", (device,))] if open_device else []
        answer: Answer = {}
        for name, arguments in steps:
            answer = getattr(self, name)(*arguments)
            if answer["result"] != 0:
                return {**answer, "failed_in": name}
        return answer

    # containers

    def open_container(self, container: str) -> Answer:
        self.containers[container] = os.open("/dev/vfio/vfio", os.O_RDWR)
        return done()

    def close_container(self, container: str) -> Answer:
        return self._close(self.containers.pop(container))

    def check_extension(self, container: str, extension: int) -> Answer:
        return ioctl(self.containers[container], abi.CHECK_EXTENSION, extension)

    def set_iommu(self, container: str, iommu: int) -> Answer:
        return ioctl(self.containers[container], abi.SET_IOMMU, iommu)

    def enable(self, container: str) -> Answer:
        return ioctl(self.containers[container], abi.ENABLE)

    def disable(self, container: str) -> Answer:
        return ioctl(self.containers[container], abi.DISABLE)

    def raw(self, container: str, number: int) -> Answer:
        return ioctl(self.containers[container], abi.BASE + number)

    def eeh(self, container: str, op: int) -> Answer:
        return ioctl(self.containers[container], abi.EEH_PE_OP, pack("=III", 24, 0, op))

    def info(self, container: str, argsz: int) -> Answer:
        buffer = ctypes.create_string_buffer(32)
        struct.pack_into("=I", buffer, 0, argsz)
        answer = ioctl(self.containers[container], abi.TCE_GET_INFO, buffer)
        fields = struct.unpack("=IIIIQII", buffer.raw)
        names = ("argsz", "flags", "start", "size", "page_sizes", "windows", "levels")
        return {**answer, **dict(zip(names, fields, strict=True))}

    def _close(self, held: int | Edu) -> Answer:
        before = abi.locked_kib()
        if isinstance(held, int):
            os.close(held)
        else:
            held.close()
        return done(locked_before_kib=before, locked_after_kib=abi.locked_kib())

    # groups and devices

    def open_group(self, device: str | int) -> Answer:
        number = device if isinstance(device, int) else pci.group(device)
        try:
            self.groups[device] = os.open(f"/dev/vfio/{number}", os.O_RDWR)
        except OSError as error:
            return done(**failed(error.errno or -1))
        return done()

    def close_group(self, device: str) -> Answer:
        return self._close(self.groups.pop(device))

    def group_status(self, device: str) -> Answer:
        buffer = pack("=II", 8, 0)
        answer = ioctl(self.groups[device], abi.GROUP_GET_STATUS, buffer)
        return {**answer, "flags": struct.unpack_from("=I", buffer.raw, 4)[0]}

    def set_container(self, device: str, container: str) -> Answer:
        fd = self.containers.get(container, -1)
        return ioctl(self.groups[device], abi.GROUP_SET_CONTAINER, ctypes.c_int(fd))

    def unset_container(self, device: str) -> Answer:
        return ioctl(self.groups[device], abi.GROUP_UNSET_CONTAINER)

    def open_device(self, device: str, group: str | None = None, name: str | None = None) -> Answer:
        buffer = ctypes.create_string_buffer((name or pci.address(device)).encode())
        answer = ioctl(self.groups[group or device], abi.GROUP_GET_DEVICE_FD, buffer)
        if answer["result"] >= 0:
            self.devices[device] = Edu(answer["result"])
            answer["result"] = 0
            answer["identity"] = self.devices[device].identity
        return answer

    def close_device(self, device: str) -> Answer:
        return self._close(self.devices.pop(device))

    # memory

    def allocate(self, memory: str, size: int, huge: bool = False) -> Answer:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (_MAP_HUGETLB if huge else 0)
        block = mmap.mmap(-1, size, flags=flags)
        block[::PAGE] = b"\0" * len(range(0, size, PAGE))
        self.memory[memory] = block
        return done()

    def protect(self, memory: str) -> Answer:
        """Let the process only read a block."""
        length = ctypes.c_size_t(len(self.memory[memory]))
        if abi.LIBC.mprotect(ctypes.c_void_p(self._at(memory)), length, mmap.PROT_READ):
            raise OSError(ctypes.get_errno(), "mprotect")
        return done()

    def punch(self, memory: str, offset: int, size: int) -> Answer:
        """Unmap a part of a block: an address range with a hole."""
        if abi.LIBC.munmap(ctypes.c_void_p(self._at(memory) + offset), ctypes.c_size_t(size)):
            raise OSError(ctypes.get_errno(), "munmap")
        return done()

    def _at(self, memory: str) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory[memory]))

    def fill(self, memory: str, offset: int, size: int, seed: int) -> Answer:
        self.memory[memory][offset : offset + size] = pattern(seed, size)
        return done()

    def compare(self, memory: str, offset: int, size: int, seed: int) -> Answer:
        """How many bytes of a block are the pattern's."""
        found = self.memory[memory][offset : offset + size]
        same = sum(a == b for a, b in zip(found, pattern(seed, size), strict=True))
        return {**done(), "same": same, "zero": found.count(0)}

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
        request = pack("=IIQQQ", argsz, flags, self._at(memory) + offset, iova, size)
        return self._maybe_forked(fork, self.containers[container], abi.MAP_DMA, request)

    def unmap(self, container: str, iova: int, size: int, flags: int = 0, argsz: int = 24) -> Answer:
        return ioctl(self.containers[container], abi.UNMAP_DMA, pack("=IIQQ", argsz, flags, iova, size))

    def enable_forked(self, container: str) -> Answer:
        return self._maybe_forked(True, self.containers[container], abi.ENABLE, 0)

    def register(self, container: str, memory: str, offset: int, size: int, argsz: int = 24, flags: int = 0) -> Answer:
        request = pack("=IIQQ", argsz, flags, self._at(memory) + offset, size)
        return ioctl(self.containers[container], abi.REGISTER_MEMORY, request)

    def unregister(
        self, container: str, memory: str, offset: int, size: int, argsz: int = 24, flags: int = 0
    ) -> Answer:
        request = pack("=IIQQ", argsz, flags, self._at(memory) + offset, size)
        return ioctl(self.containers[container], abi.UNREGISTER_MEMORY, request)

    def create_window(
        self, container: str, page_shift: int, window_size: int, levels: int = 1, argsz: int = 40, flags: int = 0
    ) -> Answer:
        buffer = pack("=IIIIQIIQ", argsz, flags, page_shift, 0, window_size, levels, 0, 0)
        answer = ioctl(self.containers[container], abi.TCE_CREATE, buffer)
        # start_addr is an unsigned 64-bit number of which bit 59 is set: JSON and CEL hold it exactly
        return {**answer, "start": struct.unpack_from("=Q", buffer.raw, 32)[0] if answer["result"] == 0 else 0}

    def remove_window(self, container: str, start: int, argsz: int = 16, flags: int = 0) -> Answer:
        return ioctl(self.containers[container], abi.TCE_REMOVE, pack("=IIQ", argsz, flags, start))

    def _maybe_forked(self, fork: bool, fd: int, number: int, request: Argument) -> Answer:
        """The same ioctl by a child: the kernel ties a container to the address space that set it up."""
        if not fork:
            return ioctl(fd, number, request)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, json.dumps(ioctl(fd, number, request)).encode())
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
        return done(completed=self.devices[device].dma(iova, size, to_device, offset, through_bar))

    def control(self, device: str, memory: str, offset: int, iova: int) -> Answer:
        """Remember a mapping through which the device is known to reach memory, and try it."""
        self.controls[device] = memory, offset, iova
        ours = self._load(device)
        return done(identity=self.devices[device].identity, arrived=self._returned(device) == ours)

    def reach(self, device: str, memory: str, offset: int, iova: int) -> Answer:
        """What the device reads at an IOVA, and what becomes of memory when it writes there.

        The two are framed by transfers through the control mapping. The first gives the device something to overwrite
        and something to write; the second brings both back. The one to write, whole and in its place again, proves that
        the device moves bytes before and afterwards; in the other's place is what it read, or still what it was given.
        """
        if device not in self.controls:
            raise ValueError(f"edu.reach needs an edu.control of {device} before it")
        edu, block, part = self.devices[device], self.memory[memory], slice(offset, offset + _HALF)
        ours = self._load(device)[_HALF:]
        held = block[part] = os.urandom(_HALF)
        answered = edu.dma(iova, _HALF, to_device=True)
        answered = edu.dma(iova, _HALF, to_device=False, offset=_HALF) and answered
        found = block[part]
        returned = self._returned(device)
        read, sound = returned[:_HALF], answered and returned[_HALF:] == ours
        return done(
            control=sound,
            reads=sound and read == held,
            zeros=sound and read == bytes(_HALF),
            writes=sound and found == ours,
            untouched=sound and found == held,
        )

    def _load(self, device: str) -> bytes:
        """Let the device read from the control page what nobody has seen before: random bytes."""
        memory, offset, iova = self.controls[device]
        content = self.memory[memory][offset : offset + 2 * _HALF] = os.urandom(2 * _HALF)
        self.devices[device].dma(iova, 2 * _HALF, to_device=True)
        return content

    def _returned(self, device: str) -> bytes:
        """What the device holds, as it writes it to the control page, which has forgotten what it had."""
        memory, offset, iova = self.controls[device]
        part = slice(offset, offset + 2 * _HALF)
        self.memory[memory][part] = b"\xff" * (2 * _HALF)
        self.devices[device].dma(iova, 2 * _HALF, to_device=False)
        return self.memory[memory][part]
