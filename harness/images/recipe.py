"""How images are made: the recipes in ``images/``, read strictly and checked."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness.errors import HostError
from harness.images.arch import Arch
from harness.strict_yaml import read
from harness.validate import did_you_mean, fault, validate

ROOT_VARIABLE = "HARNESS_IMAGES"
Kind = Literal["kernels", "rootfs", "modules", "hypervisors", "toolchains", "bootloaders"]
KernelFormat = Literal["bzImage", "Image", "vmlinux"]
R = TypeVar("R", bound=BaseModel)


def _inside(path: str) -> str:
    """Refuse a path that leads out of the image."""
    if {".", ".."} & set(PurePosixPath(path).parts):
        raise fault(f"a path must not contain . or .., got {path}")
    return path


Suite = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]
PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$", max_length=128)]
Glob = Annotated[str, Field(pattern=r"^[\w/*?.+\[\]!-]+$", max_length=256)]
TargetPath = Annotated[str, Field(pattern=r"^[\w.+-]+(/[\w.+-]+)*$", max_length=256), AfterValidator(_inside)]
LinkTarget = Annotated[str, Field(pattern=r"^/?[\w.+-]+(/[\w.+-]+)*$", max_length=256)]
FileName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
SourceName = Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=128), AfterValidator(_inside)]
OptionName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$", max_length=64)]
OptionValue = Annotated[str, Field(pattern=r"^([ymn]|\d+|0x[0-9a-f]+|\"[\w ,./-]*\")$", max_length=256)]
ModuleName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]
Permissions = Annotated[str, Field(pattern=r"^0[0-7]{3}$")]


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FromSuite(_Recipe):
    """What is made of a Debian suite's packages.

    ``check_valid_until`` is false for a frozen mirror of a suite whose index carries an expiry date.
    """

    suite: Suite
    check_valid_until: bool = True


class KernelPackages(_Recipe):
    """The packages of one architecture's kernel, and what kind of image they must hold."""

    packages: tuple[PackageName, ...] = Field(min_length=1)
    format: KernelFormat


class KernelBuild(_Recipe):
    """How a small kernel is built of the same source, for what is no module.

    Machine profiles say of which configuration. ``trim`` has shell patterns of what
    the source can do without; what decides about configuration and building is kept all the same.
    """

    trim: tuple[Glob, ...] = ()
    toolchain: FileName = "trixie"


class KernelRecipe(FromSuite):
    """A kernel out of Debian packages.

    ``build`` says how one under test is compiled. ``unpack`` says, by shell patterns, which packages of the closure
    hold the kernel; the rest is what would install it, and is not even fetched.
    """

    architectures: dict[Arch, KernelPackages] = Field(min_length=1)
    unpack: tuple[Glob, ...] = ("linux-image-*", "linux-binary-*", "linux-modules-*")
    build: KernelBuild | None = None

    def packages(self, arch: Arch, name: str) -> KernelPackages:
        """One architecture's packages.

        :param name: the recipe's name, for the error.
        :raises HostError: the recipe has none for it.
        """
        if arch not in self.architectures:
            raise HostError(
                f"kernel {name} is not made for {arch}", hint=f"it is for {', '.join(sorted(self.architectures))}"
            )
        return self.architectures[arch]


class FileRecipe(_Recipe):
    """A file of the harness's own, from ``rootfs/files/``; the mode is octal, in quotes."""

    source: FileName
    mode: Permissions = "0644"


class RootfsRecipe(FromSuite):
    """A root file system out of Debian packages, packed as an initramfs.

    ``unpack`` and ``exclude`` have shell patterns of packages in the closure that are taken and left out, ``trim`` of
    paths in the rest (``*`` also matches ``/``), ``links`` and ``files`` what is put in afterwards, by path. What is an
    ``addition`` to another root has nothing but that: no byte code, no applets, no mount points.
    """

    packages: tuple[PackageName, ...] = Field(min_length=1)
    unpack: tuple[Glob, ...] = ("*",)
    exclude: tuple[Glob, ...] = ()
    trim: tuple[Glob, ...] = ()
    links: dict[TargetPath, LinkTarget] = {}
    files: dict[TargetPath, FileRecipe] = {}
    addition: bool = False


class ToolchainRecipe(FromSuite):
    """Compilers and what else a build needs, for this host's architecture; a root of its own for each target.

    ``compilers`` has one package more for each target. ``exclude`` and ``trim`` are as in a root file system's recipe;
    ``links`` are made afterwards.
    """

    packages: tuple[PackageName, ...] = Field(min_length=1)
    compilers: dict[Arch, PackageName]
    exclude: tuple[Glob, ...] = ()
    trim: tuple[Glob, ...] = ()
    links: dict[TargetPath, TargetPath] = {}


class ModuleBuild(_Recipe):
    """How a module is built out of the kernel's tree, against the headers of the kernel that is booted.

    ``files`` lie in ``directory`` of the kernel's source, and there goes ``kbuild`` with them: see
    Documentation/kbuild/modules.rst.
    """

    architectures: tuple[Arch, ...] = Field(min_length=1)
    directory: TargetPath
    files: tuple[SourceName, ...] = Field(min_length=1)
    kbuild: Annotated[str, Field(max_length=4096)]
    toolchain: FileName = "trixie"

    @property
    def paths(self) -> list[str]:
        """Where its files are in the kernel's source."""
        return [f"{self.directory}/{file}" for file in self.files]


class ModuleRecipe(_Recipe):
    """A kernel module that a scenario can load, by the file's name.

    ``source: kernel`` takes it from the package of the kernel that is booted, ``source: build`` builds it from that
    kernel's source. ``build`` says how, and also serves to build what somebody puts under test.
    """

    source: Literal["kernel", "build"]
    build: ModuleBuild | None = None

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        if self.source == "build" and self.build is None:
            raise fault("source: build needs to be told how, in build")
        return self


class HypervisorTarget(_Recipe):
    """One architecture's hypervisor: the packages that it is in, or the options of its configuration."""

    packages: tuple[PackageName, ...] = ()
    options: dict[OptionName, OptionValue] = {}


class HypervisorRecipe(FromSuite):
    """Xen: out of Debian's packages, or built from the source package ``package``."""

    source: Literal["package", "build"]
    package: PackageName = "xen"
    toolchain: FileName = "trixie"
    architectures: dict[Arch, HypervisorTarget] = Field(min_length=1)

    def target(self, arch: Arch, name: str) -> HypervisorTarget:
        """One architecture's share; raises as :meth:`KernelRecipe.packages`."""
        if arch not in self.architectures:
            raise HostError(
                f"hypervisor {name} is not made for {arch}", hint=f"it is for {', '.join(sorted(self.architectures))}"
            )
        return self.architectures[arch]


class BootloaderRecipe(FromSuite):
    """GRUB for a PC's BIOS, as what stands before the first partition of a disk.

    ``platform`` are packages of the machine's architecture that hold GRUB's modules, ``tools`` of this host's that put
    them together; ``unpack`` says, by shell patterns, which packages of their closure hold what is needed. ``modules``
    are built in.
    """

    platform: tuple[PackageName, ...] = Field(min_length=1)
    tools: tuple[PackageName, ...] = Field(min_length=1)
    unpack: tuple[Glob, ...] = ("*",)
    modules: tuple[ModuleName, ...] = Field(min_length=1)


class Recipes:
    """The recipes below a directory.

    :param root: the directory; by default what :data:`ROOT_VARIABLE` names, else the one that belongs to this package.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or _default_root()

    def names(self, kind: Kind) -> list[str]:
        """The names of the recipes of a kind."""
        return sorted(path.stem for path in (self.root / kind).glob("*.yaml"))

    def kernel(self, name: str) -> KernelRecipe:
        """A kernel's recipe.

        :raises HostError: there is none of that name.
        :raises ScenarioError: it is wrong.
        """
        return self._read("kernels", name, KernelRecipe)

    def rootfs(self, name: str) -> RootfsRecipe:
        """A root file system's recipe; raises as :meth:`kernel`."""
        return self._read("rootfs", name, RootfsRecipe)

    def module(self, name: str) -> ModuleRecipe:
        """A module's recipe; raises as :meth:`kernel`."""
        return self._read("modules", name, ModuleRecipe)

    def hypervisor(self, name: str) -> HypervisorRecipe:
        """A hypervisor's recipe; raises as :meth:`kernel`."""
        return self._read("hypervisors", name, HypervisorRecipe)

    def toolchain(self, name: str) -> ToolchainRecipe:
        """A toolchain's recipe; raises as :meth:`kernel`."""
        return self._read("toolchains", name, ToolchainRecipe)

    def bootloader(self, name: str) -> BootloaderRecipe:
        """A boot loader's recipe; raises as :meth:`kernel`."""
        return self._read("bootloaders", name, BootloaderRecipe)

    def file(self, file: FileRecipe) -> bytes:
        """The contents of one of ``rootfs/files/``.

        :raises HostError: there is no such file.
        """
        return self._content(self.root / "rootfs" / "files" / file.source)

    def config(self, name: str) -> str:
        """A part of a kernel's configuration, from ``configs/``; raises as :meth:`file`."""
        return self._content(self.root / "configs" / name).decode()

    def _content(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise HostError(
                f"cannot read {path}: {error.strerror}",
                hint=did_you_mean(path.name, (other.name for other in path.parent.glob("*"))),
            ) from error

    def _read(self, kind: Kind, name: str, model: type[R]) -> R:
        known = self.names(kind)
        if name not in known:
            raise HostError(
                f"there is no recipe {name!r} in {self.root / kind}",
                hint=did_you_mean(name, known) or f"known are: {', '.join(known) or 'none'}",
            )
        return validate(model, read(self.root / kind / f"{name}.yaml"))


def kernel_inputs(recipe: KernelRecipe, packages: KernelPackages) -> dict[str, Any]:
    """What makes one architecture's kernel the one it is: everything in the recipe but the other architectures."""
    return {**recipe.model_dump(mode="json", exclude={"architectures", "build"}), **packages.model_dump(mode="json")}


def rootfs_inputs(recipe: RootfsRecipe, recipes: Recipes) -> dict[str, Any]:
    """What makes a root file system the one it is: the recipe, and the contents of the files that it names."""
    contents = {path: hashlib.sha256(recipes.file(file)).hexdigest() for path, file in recipe.files.items()}
    return {**recipe.model_dump(mode="json"), "contents": contents}


def _default_root() -> Path:
    if chosen := os.environ.get(ROOT_VARIABLE):
        return Path(chosen)
    package = Path(__file__).parents[1]
    installed = package / "_images"
    return installed if installed.is_dir() else package.parent / "images"
