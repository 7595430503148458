"""Images by name: from the store, or built into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness.deadline import Deadline
from harness.images import cpio, debs
from harness.images.apt import Apt, Deb, mirror
from harness.images.arch import Arch, host_arch
from harness.images.kernel import IMAGE, MODULES, VMLINUX, unpack_kernel
from harness.images.manifest import Package
from harness.images.modules import Modules, segment
from harness.images.recipe import FromSuite, Recipes, RootfsRecipe, kernel_inputs, rootfs_inputs
from harness.images.rootfs import finish, root_tree
from harness.images.store import Built, Entry, Store
from harness.progress import Progress

# Counted up when what is built from the same inputs changes, so that stores forget what older builders made.
_KERNEL_FORMAT = 1
_ROOTFS_FORMAT = 1
_SEGMENT_FORMAT = 1

_CPIO = "rootfs.cpio"
_SEGMENT = "modules.cpio"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in the store.

    :param name: its recipe's.
    :param arch: its architecture.
    :param release: as ``uname -r`` prints it.
    :param entry: what the store knows of it; its files are ``vmlinuz``, ``config``, ``System.map``, ``modules.tar`` and
        on amd64 ``vmlinux``.
    """

    name: str
    arch: Arch
    release: str
    entry: Entry

    @property
    def image(self) -> Path:
        """What QEMU's ``-kernel`` boots fastest: without its compression where there is one."""
        return self.entry.path(_boot_image(self.arch))

    @property
    def vmlinuz(self) -> Path:
        """The image as the package has it, for boot loaders."""
        return self.entry.path(IMAGE)


class Images:
    """What machines boot.

    Everything is given at once when the store has it. Building needs the network, once.

    :param progress: hears what is being built.
    """

    def __init__(self, recipes: Recipes, store: Store, progress: Progress) -> None:
        self._recipes = recipes
        self._store = store
        self._progress = progress
        self._roots: dict[tuple[str, Arch, bool], Apt] = {}

    def kernel(self, name: str, arch: Arch) -> Kernel:
        """A kernel, by its recipe's name.

        :raises HostError: it cannot be built.
        :raises ScenarioError: its recipe is wrong.
        """
        entry = self._kernel_entry(name, arch, _boot_image(arch))
        return Kernel(name, arch, entry.facts["release"], entry)

    def rootfs(self, name: str, arch: Arch) -> Path:
        """A root file system's initramfs: an uncompressed cpio archive. Raises as :meth:`kernel`."""
        return self._rootfs_entry(name, arch).path(_CPIO)

    def segment(self, kernel: Kernel, early: Sequence[str], available: Sequence[str]) -> Path:
        """The cpio archive to append to an initramfs so that its init loads some modules, and finds others.

        :param early: modules that the init loads, in this order; built-in ones are skipped.
        :param available: modules that are loaded later, if at all.
        :raises HostError: the kernel has no such module; the hint names one that it has.
        """
        inputs = {
            "format": _SEGMENT_FORMAT,
            "modules": kernel.entry.files[MODULES].sha256,
            "early": list(early),
            "available": sorted(available),
        }

        def build(directory: Path, deadline: Deadline) -> Built:
            whole = self._kernel_entry(kernel.name, kernel.arch, MODULES)
            modules = Modules(whole.path(MODULES), directory, deadline)
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
            "kernel_sha256": kernel.entry.files[_boot_image(arch)].sha256,
            "rootfs_sha256": self._rootfs_entry(rootfs, arch).files[_CPIO].sha256,
        }

    def archive(self) -> str:
        """The package archive that images are built from. Says nothing about whether it can be reached.

        :raises HostError: this host knows none.
        """
        return mirror(Deadline.after(30, "apt to say where its packages come from"))

    def _kernel_entry(self, name: str, arch: Arch, need: str) -> Entry:
        recipe = self._recipes.kernel(name)
        packages = recipe.packages(arch, name)

        def build(directory: Path, deadline: Deadline) -> Built:
            apt = self._apt(recipe, arch)
            wanted = [deb for deb in apt.resolve(packages.packages, deadline) if _matches(deb, recipe.unpack)]
            fetched = apt.download(wanted, deadline)
            self._progress.phase(f"unpacking kernel {name} for {arch}")
            files, release = unpack_kernel(fetched, packages.format, directory, deadline)
            return Built({file: directory / file for file in files}, _packages(wanted), {"release": release})

        inputs = {"format": _KERNEL_FORMAT, "recipe": kernel_inputs(recipe, packages)}
        return self._store.get_or_build("kernel", name, arch, inputs, build, self._progress, need=[need])

    def _rootfs_entry(self, name: str, arch: Arch) -> Entry:
        recipe = self._recipes.rootfs(name)

        def build(directory: Path, deadline: Deadline) -> Built:
            return self._build_rootfs(recipe, name, arch, directory, deadline)

        inputs = {"format": _ROOTFS_FORMAT, "recipe": rootfs_inputs(recipe, self._recipes)}
        return self._store.get_or_build("rootfs", name, arch, inputs, build, self._progress, need=[_CPIO])

    def _build_rootfs(self, recipe: RootfsRecipe, name: str, arch: Arch, directory: Path, deadline: Deadline) -> Built:
        wanted, fetched = self._fetch(recipe, arch, deadline)
        native = host_arch()
        runnable = fetched if arch == native or recipe.addition else self._fetch(recipe, native, deadline)[1]
        self._progress.phase(f"packing root file system {name} for {arch}")
        tree = root_tree(fetched, recipe.trim, directory, deadline)
        if not recipe.addition:
            debs.extract(runnable, directory / "native", deadline)
            finish(tree, directory / "native", native, directory, deadline)
        for path, target in recipe.links.items():
            tree.symlink(path, target)
        for path, file in recipe.files.items():
            tree.file(path, self._recipes.file(file), int(file.mode, 8))
        packed = directory / _CPIO
        with packed.open("wb") as out:
            cpio.pack(tree, out)
        return Built({_CPIO: packed}, _packages(wanted))

    def _fetch(self, recipe: RootfsRecipe, arch: Arch, deadline: Deadline) -> tuple[list[Deb], list[Path]]:
        apt = self._apt(recipe, arch)
        closure = apt.resolve(recipe.packages, deadline)
        wanted = [deb for deb in closure if _matches(deb, recipe.unpack) and not _matches(deb, recipe.exclude)]
        return wanted, apt.download(wanted, deadline)

    def _apt(self, recipe: FromSuite, arch: Arch) -> Apt:
        """The one apt root for a suite, so that its index is read once in a session."""
        key = (recipe.suite, arch, recipe.check_valid_until)
        if key not in self._roots:
            self._roots[key] = Apt(
                self._store.root,
                recipe.suite,
                arch,
                check_valid_until=recipe.check_valid_until,
                progress=self._progress,
            )
        return self._roots[key]


def _boot_image(arch: Arch) -> str:
    return VMLINUX if arch == "amd64" else IMAGE


def _matches(deb: Deb, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(deb.name, pattern) for pattern in patterns)


def _packages(wanted: Sequence[Deb]) -> list[Package]:
    return [
        Package(name=deb.name, version=deb.version, architecture=deb.architecture, sha256=deb.sha256) for deb in wanted
    ]
