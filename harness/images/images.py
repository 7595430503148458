"""Images by name: from the store, or built into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HostError
from harness.images import cpio, debs, grub
from harness.images.apt import Deb
from harness.images.arch import Arch, host_arch
from harness.images.archive import Archive, manifest_packages
from harness.images.compressed import decompressed
from harness.images.incremental import described
from harness.images.kernel import (
    FORMATS,
    IMAGE,
    MODULES,
    XEN,
    Hypervisor,
    Kernel,
    boot_image,
    bzimage_payload,
    unpack_kernel,
)
from harness.images.mirror import mirror
from harness.images.modules import Modules, builtin_tree, depends, module_name, segment
from harness.images.patches import inexact_hunks
from harness.images.probes import probe_sources, probes_tree
from harness.images.recipe import Recipes, RootfsRecipe, kernel_inputs, rootfs_inputs
from harness.images.rootfs import finish, root_tree
from harness.images.store import Built, Entry, Store
from harness.images.under_test import XEN as UNDER_TEST_XEN
from harness.images.under_test import (
    Candidate,
    Override,
    check_arch,
    check_module,
    kernel_release,
    vermagic_of,
)
from harness.images.workshop import BUILT_IN, KO, Workshop
from harness.images.xen_version import xen_version
from harness.progress import Progress

# Counted up when what is built from the same inputs changes, so that stores forget what older builders made.
_KERNEL_FORMAT = 1
_ROOTFS_FORMAT = 1
_NATIVE_FORMAT = 1
_PROBES_FORMAT = 1
_SEGMENT_FORMAT = 2
_GIVEN_FORMAT = 1
_BOOTLOADER_FORMAT = 1

_CPIO = "rootfs.cpio"
_PROBES = "probes.cpio"
_SEGMENT = "modules.cpio"
_GIVEN = "given"


class Images:
    """What machines boot.

    Everything is given at once when the store has it. Building needs the network, once.

    :param progress: hears what is being built.
    """

    def __init__(self, recipes: Recipes, store: Store, progress: Progress) -> None:
        self._recipes = recipes
        self._store = store
        self._progress = progress
        self._archive = Archive(store.root, progress)
        self._workshop = Workshop(recipes, store, self._archive, progress)
        self._refused: dict[tuple[str, str, Arch], HostError] = {}
        self._found: dict[tuple[object, ...], Candidate] = {}
        self._kept: list[Override] = []

    def kernel(self, name: str, arch: Arch, *, anew: bool = False) -> Kernel:
        """A kernel, by its recipe's name.

        :param anew: take what the archive has now, even if there is one.
        :raises HostError: it cannot be built.
        :raises ScenarioError: its recipe is wrong.
        """
        entry = self._kernel_entry(name, arch, boot_image(arch), anew=anew)
        return Kernel(name, arch, entry.facts["release"], entry)

    def rootfs(self, name: str, arch: Arch) -> Path:
        """A root file system's initramfs: an uncompressed cpio archive. Raises as :meth:`kernel`."""
        return self._rootfs_entry(name, arch).path(_CPIO)

    def probes(self, rootfs: str) -> Path:
        """The segment with the probes, for the Python of a root file system. Raises as :meth:`kernel`."""
        sources = probe_sources()

        def build(directory: Path, deadline: Deadline) -> Built:
            tree = probes_tree(sources, self._native_root(rootfs), host_arch(), directory, deadline)
            (directory / _PROBES).write_bytes(cpio.packed(tree))
            return Built({_PROBES: directory / _PROBES}, durable=False)

        inputs = {
            "format": _PROBES_FORMAT,
            "recipe": rootfs_inputs(self._recipes.rootfs(rootfs), self._recipes),
            "sources": {name: hashlib.sha256(source).hexdigest() for name, source in sources.items()},
        }
        return self._store.get_or_build("probes", rootfs, "all", inputs, build, self._progress).path(_PROBES)

    def module(self, name: str, kernel: Kernel) -> Path:
        """A module built from the kernel's source: an uncompressed ``.ko``. Raises as :meth:`kernel`.

        :raises BuildFailed: it does not compile.
        """
        return self._workshop.module(name, kernel).path(KO)

    def hypervisor(self, name: str, arch: Arch) -> Hypervisor:
        """A hypervisor, by its recipe's name. Raises as :meth:`module`."""
        entry = self._workshop.hypervisor(name, arch)
        return Hypervisor(name, arch, entry.facts["version"], entry)

    def bootloader(self, name: str) -> Path:
        """A boot loader for a PC's disk, by its recipe's name: what stands before the first partition.

        Raises as :meth:`kernel`.
        """
        recipe = self._recipes.bootloader(name)

        def build(directory: Path, deadline: Deadline) -> Built:
            native = host_arch()
            parts = {"platform": ("amd64", recipe.platform), "tools": (native, recipe.tools)}
            wanted = []
            for part, (arch, packages) in parts.items():
                found, fetched = self._archive.fetch(recipe, arch, packages, deadline, only=recipe.unpack)
                debs.extract(fetched, directory / part, deadline)
                wanted += found
            self._progress.phase(f"putting boot loader {name} together")
            area = grub.boot_area(
                directory / "platform", directory / "tools", native, recipe.modules, directory, deadline
            )
            return Built({grub.AREA: area}, manifest_packages(dict.fromkeys(wanted)))

        inputs = {"format": _BOOTLOADER_FORMAT, "recipe": recipe.model_dump(mode="json")}
        entry = self._store.get_or_build("bootloader", name, "amd64", inputs, build, self._progress, need=[grub.AREA])
        return entry.path(grub.AREA)

    def builds(self, component: str, arch: Arch) -> bool:
        """Whether there is a recipe that builds a component for an architecture from source."""
        return component == UNDER_TEST_XEN or self._workshop.builds(component, arch)

    def tested_module(self, override: Override, kernel: Kernel) -> Candidate:
        """A module under test, built if need be, and found to fit the kernel.

        :raises BuildFailed: a patch does not apply, or it does not compile.
        :raises HostError: it is for another kernel or architecture, or cannot be built here.
        """
        return self._once(override, (kernel.name, kernel.arch), lambda: self._tested_module(override, kernel))

    def _tested_module(self, override: Override, kernel: Kernel) -> Candidate:
        name = override.component
        if override.kind == "file":
            check_module(override.option, override.source, override.contents[0], kernel.arch, kernel.release)
        entry = self._given(override, kernel.arch) or self._workshop.module(name, kernel, override)
        file = _GIVEN if override.kind == "file" else KO
        stock = f"module {name} of Debian's kernel {kernel.version}"
        replaced = f"module {name} as its recipe builds it" if self._is_built(name) else stock
        return self._tested(override, entry, file, vermagic_of(entry.path(file).read_bytes()), replaced)

    def tested_kernel(self, override: Override, kernel: Kernel, small: Sequence[str] = ()) -> Candidate:
        """A kernel under test; what is built is a small one. Raises as :meth:`tested_module`.

        :param small: the parts of its configuration; none where a machine can have no such kernel.
        """
        what = (kernel.name, kernel.arch, *small)
        return self._once(override, what, lambda: self._tested_kernel(override, kernel, small))

    def _tested_kernel(self, override: Override, kernel: Kernel, small: Sequence[str]) -> Candidate:
        if override.kind == "file":
            check_arch(override.option, override.source, override.contents[0], kernel.arch)
        entry = self._given(override, kernel.arch) or self._workshop.kernel(kernel, override, small)
        file = _GIVEN if override.kind == "file" else IMAGE
        replaced = f"Debian's kernel {kernel.version}"
        return self._tested(override, entry, file, kernel_release(entry.path(file).read_bytes()), replaced)

    def tested_hypervisor(self, override: Override, name: str, arch: Arch) -> Candidate:
        """A hypervisor under test, in the place of a recipe's; raises as :meth:`tested_module`."""
        return self._once(override, (name, arch), lambda: self._tested_hypervisor(override, name, arch))

    def _tested_hypervisor(self, override: Override, name: str, arch: Arch) -> Candidate:
        entry = self._given(override, arch) or self._workshop.hypervisor(name, arch, override)
        file = _GIVEN if override.kind == "file" else XEN
        content = entry.path(file).read_bytes()
        if override.kind == "file":
            check_arch(override.option, override.source, content, arch)
        version = xen_version(content, entry.facts.get("version", ""))
        return self._tested(override, entry, file, version, f"hypervisor {name} of its recipe")

    def _once(self, override: Override, what: tuple[str, ...], make: Callable[[], Candidate]) -> Candidate:
        """What came of an option is the same all session long: a tree is read once, whoever writes to it meanwhile."""
        key = (id(override), *what)
        if key not in self._found:
            self._found[key] = make()
            self._kept.append(override)  # or another might get its id
        return self._found[key]

    def _tested(self, override: Override, entry: Entry, file: str, version: str, replaced: str) -> Candidate:
        tree = override.sources[0] if override.kind == "tree" else None
        describe = described(tree, Deadline.after(30, "git to describe a tree")) if tree else ""
        return Candidate(
            override,
            entry.path(file),
            entry.files[file].sha256,
            describe,
            version,
            replaced,
            inexact_hunks(entry.facts, override.sources),
            frozenset(entry.facts[BUILT_IN].split()) if BUILT_IN in entry.facts else None,
        )

    def _given(self, override: Override, arch: Arch) -> Entry | None:
        """A built file of the user's, as it was read, without its compression; None where something must be built."""
        if override.kind != "file":
            return None
        content = override.contents[0]

        def build(directory: Path, deadline: Deadline) -> Built:
            at, magic = FORMATS["bzImage"]
            plain = bzimage_payload(content) if content[at : at + len(magic)] == magic else content
            (directory / _GIVEN).write_bytes(decompressed(plain, override.source, directory, deadline))
            return Built({_GIVEN: directory / _GIVEN})

        inputs = {"format": _GIVEN_FORMAT, "sha256": override.sha256}
        return self._store.get_or_build(
            "under-test", override.component, arch, inputs, build, self._progress, need=[_GIVEN]
        )

    def segment(
        self,
        kernel: Kernel,
        early: Sequence[str],
        available: Sequence[str],
        own: Mapping[str, Candidate] | None = None,
    ) -> Path:
        """The cpio archive to append to an initramfs so that its init loads some modules, and finds others.

        :param early: modules that the init loads, in this order; built-in ones are skipped.
        :param available: modules that are loaded later, if at all. Those that their recipes build take the place of the
            kernel's own, also among the early ones.
        :param own: modules under test, which take the place of either.
        :raises HostError: the kernel has no such module; the hint names one that it has.
        :raises BuildFailed: one does not compile.
        """
        return self._segment_entry(kernel, early, available, own or {}).path(_SEGMENT)

    def can_come_late(self, kernel: Kernel, early: Sequence[str], available: Sequence[str], tested: Candidate) -> bool:
        """Whether a module under test can be put into a guest that has booted without it.

        So it can when nothing loads it at boot, and it needs nothing that the module in its place does not need.
        """
        index = json.loads(self._segment_entry(kernel, early, available, {}).facts["index"])
        name = module_name(tested.override.component)
        needed = set(depends(tested.path.read_bytes()))
        return name not in index["early"] and needed <= set(index["chains"].get(tested.override.component, ()))

    def builtin_segment(self, kernel: Kernel, early: Sequence[str], available: Sequence[str], release: str) -> Path:
        """In place of :meth:`segment`, for a kernel of another release: it must have every module built in."""

        def build(directory: Path, deadline: Deadline) -> Built:  # noqa: ARG001 (nothing to wait for)
            with (directory / _SEGMENT).open("wb") as out:
                cpio.pack(builtin_tree([*early, *available]), out)
            return Built({_SEGMENT: directory / _SEGMENT})

        inputs = {"format": _SEGMENT_FORMAT, "release": release, "builtin": sorted({*early, *available})}
        entry = self._store.get_or_build(
            "segment", kernel.name, kernel.arch, inputs, build, self._progress, need=[_SEGMENT]
        )
        return entry.path(_SEGMENT)

    def _segment_entry(
        self, kernel: Kernel, early: Sequence[str], available: Sequence[str], tested: Mapping[str, Candidate]
    ) -> Entry:
        names = [name for name in sorted(available) if name not in tested and self._is_built(name)]
        built = {name: self._workshop.module(name, kernel) for name in names}
        hashes = {name: entry.files[KO].sha256 for name, entry in built.items()}
        hashes |= {name: item.sha256 for name, item in tested.items()}
        inputs = {
            "format": _SEGMENT_FORMAT,
            "modules": kernel.entry.files[MODULES].sha256,
            "early": list(early),
            "available": sorted(available),
        }
        if hashes:
            inputs["built"] = hashes

        def build(directory: Path, deadline: Deadline) -> Built:
            whole = self._kernel_entry(kernel.name, kernel.arch, MODULES)
            own = {name: entry.path(KO) for name, entry in built.items()}
            own |= {name: item.path for name, item in tested.items()}
            modules = Modules(whole.path(MODULES), directory, deadline, own)
            target = directory / _SEGMENT
            with target.open("wb") as out:
                cpio.pack(segment(modules, early, available), out)
            index = {
                "early": modules.closure(early),
                "chains": {name: modules.closure([name]) for name in available},
            }
            return Built({_SEGMENT: target}, whole.packages, {"release": kernel.release, "index": json.dumps(index)})

        return self._store.get_or_build(
            "segment", kernel.name, kernel.arch, inputs, build, self._progress, need=[_SEGMENT]
        )

    def hashes(self, kernel: Kernel, rootfs: str, arch: Arch) -> dict[str, str]:
        """The SHA-256 of what a machine boots: ``kernel_sha256`` and ``rootfs_sha256``."""
        return {
            "kernel_sha256": kernel.entry.files[boot_image(arch)].sha256,
            "rootfs_sha256": self._rootfs_entry(rootfs, arch).files[_CPIO].sha256,
        }

    def archive(self) -> str:
        """The package archive that images are built from. Says nothing about whether it can be reached.

        :raises HostError: this host knows none.
        """
        return mirror(Deadline.after(30, "apt to say where its packages come from"))

    def _is_built(self, module: str) -> bool:
        """Whether a module's recipe builds it. What has no recipe is in the kernel's package."""
        return module in self._recipes.names("modules") and self._recipes.module(module).source == "build"

    def _kernel_entry(self, name: str, arch: Arch, need: str, *, anew: bool = False) -> Entry:
        recipe = self._recipes.kernel(name)
        packages = recipe.packages(arch, name)

        def build(directory: Path, deadline: Deadline) -> Built:
            wanted, fetched = self._archive.fetch(recipe, arch, packages.packages, deadline, only=recipe.unpack)
            self._progress.phase(f"unpacking kernel {name} for {arch}")
            files, release = unpack_kernel(fetched, packages.format, directory, deadline)
            return Built({file: directory / file for file in files}, manifest_packages(wanted), {"release": release})

        inputs = {"format": _KERNEL_FORMAT, "recipe": kernel_inputs(recipe, packages)}
        with self._tried_once("kernel", name, arch):
            return self._store.get_or_build("kernel", name, arch, inputs, build, self._progress, need=[need], anew=anew)

    def _rootfs_entry(self, name: str, arch: Arch) -> Entry:
        recipe = self._recipes.rootfs(name)

        def build(directory: Path, deadline: Deadline) -> Built:
            return self._build_rootfs(recipe, name, arch, directory, deadline)

        inputs = {"format": _ROOTFS_FORMAT, "recipe": rootfs_inputs(recipe, self._recipes)}
        with self._tried_once("rootfs", name, arch):
            return self._store.get_or_build("rootfs", name, arch, inputs, build, self._progress, need=[_CPIO])

    @contextmanager
    def _tried_once(self, kind: str, name: str, arch: Arch) -> Iterator[None]:
        """What could not be built is not tried again: each of many scenarios would wait for the same dead network."""
        key = (kind, name, arch)
        if (known := self._refused.get(key)) is not None:
            raise copy(known) from known
        try:
            yield
        except HostError as error:
            self._refused[key] = error
            raise

    def _build_rootfs(self, recipe: RootfsRecipe, name: str, arch: Arch, directory: Path, deadline: Deadline) -> Built:
        wanted, fetched = self._packages(recipe, arch, deadline)
        self._progress.phase(f"packing root file system {name} for {arch}")
        tree = root_tree(fetched, recipe.trim, directory, deadline)
        if not recipe.addition:
            finish(tree, self._native_root(name), host_arch(), directory, deadline)
        for path, target in recipe.links.items():
            tree.symlink(path, target)
        for path, file in recipe.files.items():
            tree.file(path, self._recipes.file(file), int(file.mode, 8))
        packed = directory / _CPIO
        with packed.open("wb") as out:
            cpio.pack(tree, out)
        return Built({_CPIO: packed}, manifest_packages(wanted))

    def _native_root(self, name: str) -> Path:
        """A root file system's packages for this host, unpacked: their Python compiles what guests run."""
        recipe, arch = self._recipes.rootfs(name), host_arch()

        def build(directory: Path, deadline: Deadline) -> Built:
            wanted, fetched = self._packages(recipe, arch, deadline)
            debs.extract(fetched, directory / "root", deadline)
            return Built({}, manifest_packages(wanted), tree=directory / "root")

        inputs = {"format": _NATIVE_FORMAT, "recipe": rootfs_inputs(recipe, self._recipes)}
        with self._tried_once("native", name, arch):
            return self._store.get_or_build("native", name, arch, inputs, build, self._progress).tree

    def _packages(self, recipe: RootfsRecipe, arch: Arch, deadline: Deadline) -> tuple[list[Deb], list[Path]]:
        return self._archive.fetch(recipe, arch, recipe.packages, deadline, only=recipe.unpack, exclude=recipe.exclude)
