"""Images by name: from the store, or built into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.deadline import Deadline
from harness.images import cpio, debs
from harness.images.apt import mirror
from harness.images.arch import Arch, host_arch
from harness.images.archive import Archive, manifest_packages
from harness.images.kernel import MODULES, Hypervisor, Kernel, boot_image, unpack_kernel
from harness.images.modules import Modules, segment
from harness.images.recipe import Recipes, RootfsRecipe, kernel_inputs, rootfs_inputs
from harness.images.rootfs import finish, root_tree
from harness.images.store import Built, Entry, Store
from harness.images.workshop import KO, Workshop
from harness.progress import Progress

# Counted up when what is built from the same inputs changes, so that stores forget what older builders made.
_KERNEL_FORMAT = 1
_ROOTFS_FORMAT = 1
_SEGMENT_FORMAT = 1

_CPIO = "rootfs.cpio"
_SEGMENT = "modules.cpio"


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

    def kernel(self, name: str, arch: Arch) -> Kernel:
        """A kernel, by its recipe's name.

        :raises HostError: it cannot be built.
        :raises ScenarioError: its recipe is wrong.
        """
        entry = self._kernel_entry(name, arch, boot_image(arch))
        return Kernel(name, arch, entry.facts["release"], entry)

    def rootfs(self, name: str, arch: Arch) -> Path:
        """A root file system's initramfs: an uncompressed cpio archive. Raises as :meth:`kernel`."""
        return self._rootfs_entry(name, arch).path(_CPIO)

    def module(self, name: str, kernel: Kernel) -> Path:
        """A module built from the kernel's source: an uncompressed ``.ko``. Raises as :meth:`kernel`.

        :raises BuildFailed: it does not compile.
        """
        return self._workshop.module(name, kernel).path(KO)

    def hypervisor(self, name: str, arch: Arch) -> Hypervisor:
        """A hypervisor, by its recipe's name. Raises as :meth:`module`."""
        entry = self._workshop.hypervisor(name, arch)
        return Hypervisor(name, arch, entry.facts["version"], entry)

    def segment(self, kernel: Kernel, early: Sequence[str], available: Sequence[str]) -> Path:
        """The cpio archive to append to an initramfs so that its init loads some modules, and finds others.

        :param early: modules that the init loads, in this order; built-in ones are skipped.
        :param available: modules that are loaded later, if at all. Those that their recipes build take the place of the
            kernel's own, also among the early ones.
        :raises HostError: the kernel has no such module; the hint names one that it has.
        :raises BuildFailed: one does not compile.
        """
        built = {name: self._workshop.module(name, kernel) for name in sorted(available) if self._is_built(name)}
        inputs = {
            "format": _SEGMENT_FORMAT,
            "modules": kernel.entry.files[MODULES].sha256,
            "early": list(early),
            "available": sorted(available),
        }
        if built:
            inputs["built"] = {name: entry.files[KO].sha256 for name, entry in built.items()}

        def build(directory: Path, deadline: Deadline) -> Built:
            whole = self._kernel_entry(kernel.name, kernel.arch, MODULES)
            own = {name: entry.path(KO) for name, entry in built.items()}
            modules = Modules(whole.path(MODULES), directory, deadline, own)
            target = directory / _SEGMENT
            with target.open("wb") as out:
                cpio.pack(segment(modules, early, available), out)
            return Built({_SEGMENT: target}, whole.packages, {"release": kernel.release})

        entry = self._store.get_or_build(
            "segment", kernel.name, kernel.arch, inputs, build, self._progress, need=[_SEGMENT]
        )
        return entry.path(_SEGMENT)

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

    def _kernel_entry(self, name: str, arch: Arch, need: str) -> Entry:
        recipe = self._recipes.kernel(name)
        packages = recipe.packages(arch, name)

        def build(directory: Path, deadline: Deadline) -> Built:
            wanted, fetched = self._archive.fetch(recipe, arch, packages.packages, deadline, only=recipe.unpack)
            self._progress.phase(f"unpacking kernel {name} for {arch}")
            files, release = unpack_kernel(fetched, packages.format, directory, deadline)
            return Built({file: directory / file for file in files}, manifest_packages(wanted), {"release": release})

        inputs = {"format": _KERNEL_FORMAT, "recipe": kernel_inputs(recipe, packages)}
        return self._store.get_or_build("kernel", name, arch, inputs, build, self._progress, need=[need])

    def _rootfs_entry(self, name: str, arch: Arch) -> Entry:
        recipe = self._recipes.rootfs(name)

        def build(directory: Path, deadline: Deadline) -> Built:
            return self._build_rootfs(recipe, name, arch, directory, deadline)

        inputs = {"format": _ROOTFS_FORMAT, "recipe": rootfs_inputs(recipe, self._recipes)}
        return self._store.get_or_build("rootfs", name, arch, inputs, build, self._progress, need=[_CPIO])

    def _build_rootfs(self, recipe: RootfsRecipe, name: str, arch: Arch, directory: Path, deadline: Deadline) -> Built:
        native = host_arch()
        needed = {arch} if recipe.addition else {arch, native}
        closures = {
            each: self._archive.fetch(
                recipe, each, recipe.packages, deadline, only=recipe.unpack, exclude=recipe.exclude
            )
            for each in needed
        }
        wanted, fetched = closures[arch]
        self._progress.phase(f"packing root file system {name} for {arch}")
        tree = root_tree(fetched, recipe.trim, directory, deadline)
        if not recipe.addition:
            debs.extract(closures[native][1], directory / "native", deadline)
            finish(tree, directory / "native", native, directory, deadline)
        for path, target in recipe.links.items():
            tree.symlink(path, target)
        for path, file in recipe.files.items():
            tree.file(path, self._recipes.file(file), int(file.mode, 8))
        packed = directory / _CPIO
        with packed.open("wb") as out:
            cpio.pack(tree, out)
        return Built({_CPIO: packed}, manifest_packages(wanted))
