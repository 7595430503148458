"""Where code is compiled: kernel modules and hypervisors, from Debian's sources, each result kept in the store."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import BuildFailed, HostError
from harness.images import hypervisor, kernel_source
from harness.images.arch import ABIS, Arch, host_arch
from harness.images.archive import Archive, manifest_packages
from harness.images.kernel import XEN, Kernel
from harness.images.modules import module_name
from harness.images.recipe import FromSuite, HypervisorRecipe, ModuleBuild, Recipes
from harness.images.store import Built, Entry, Store
from harness.images.toolchain import BUILD, Toolchain, make_root
from harness.progress import Progress

# Counted up when what is made from the same inputs changes, so that stores forget what older builders made.
_TOOLCHAIN_FORMAT = 1
_HEADERS_FORMAT = 1
_SOURCE_FORMAT = 1
_MODULE_FORMAT = 1
_HYPERVISOR_FORMAT = 1

KO = "module.ko"


class Workshop:
    """Builds what recipes say how to build.

    Nothing is fetched before something must be compiled: what was built once needs no toolchain any more.
    """

    def __init__(self, recipes: Recipes, store: Store, archive: Archive, progress: Progress) -> None:
        self._recipes = recipes
        self._store = store
        self._archive = archive
        self._progress = progress

    def module(self, name: str, kernel: Kernel) -> Entry:
        """A module built from the source of the kernel that it is for; its file is :data:`KO`.

        :raises BuildFailed: it does not compile.
        :raises HostError: no recipe says how to build it for this architecture, or what it takes cannot be had.
        """
        recipe = self._recipes.module(name).build
        if recipe is None:
            raise HostError(f"no recipe says how to build module {name}", hint="see build in images/modules/")
        if kernel.arch not in recipe.architectures:
            known = ", ".join(recipe.architectures)
            raise HostError(f"module {name} is not built for {kernel.arch}", hint=f"it is for {known}")
        inputs = {
            "format": _MODULE_FORMAT,
            "recipe": recipe.model_dump(mode="json", exclude={"architectures", "toolchain"}),
            "toolchain": self._toolchain_inputs(recipe.toolchain, kernel.arch),
            "kernel": kernel.release,
            "version": kernel.version,
        }

        def build(directory: Path, deadline: Deadline) -> Built:
            return self._build_module(name, recipe, kernel, directory, deadline)

        return self._store.get_or_build("module", name, kernel.arch, inputs, build, self._progress, need=[KO])

    def hypervisor(self, name: str, arch: Arch) -> Entry:
        """A hypervisor; its file is :data:`XEN`, uncompressed. Raises as :meth:`module`."""
        recipe = self._recipes.hypervisor(name)
        target = recipe.target(arch, name)
        inputs = {
            "format": _HYPERVISOR_FORMAT,
            "recipe": recipe.model_dump(mode="json", exclude={"architectures", "toolchain"}),
            "target": target.model_dump(mode="json"),
        }
        if recipe.source == "build":
            inputs["toolchain"] = self._toolchain_inputs(recipe.toolchain, arch)

        def build(directory: Path, deadline: Deadline) -> Built:
            if recipe.source == "build":
                return self._build_hypervisor(name, recipe, arch, directory, deadline)
            wanted, fetched = self._archive.fetch(recipe, arch, target.packages, deadline, only=hypervisor.PACKAGES)
            hypervisor.unpack(fetched, directory / XEN, directory, deadline)
            return Built({XEN: directory / XEN}, manifest_packages(wanted), {"version": wanted[0].version})

        return self._store.get_or_build("hypervisor", name, arch, inputs, build, self._progress, need=[XEN])

    def toolchain(self, name: str, target: Arch) -> tuple[Toolchain, Entry]:
        """A compiler for an architecture, and what the store knows of it. Raises as :meth:`module`."""
        recipe = self._recipes.toolchain(name)

        def build(directory: Path, deadline: Deadline) -> Built:
            packages = [*recipe.packages, recipe.compilers[target]]
            wanted, fetched = self._archive.fetch(recipe, host_arch(), packages, deadline, exclude=recipe.exclude)
            self._progress.phase(f"unpacking toolchain {name} for {target}")
            make_root(recipe, fetched, directory / "root", deadline)
            return Built({}, manifest_packages(wanted), tree=directory / "root")

        inputs = self._toolchain_inputs(name, target)
        entry = self._store.get_or_build("toolchain", name, target, inputs, build, self._progress)
        return Toolchain(entry.tree, target, self._progress), entry

    def _toolchain_inputs(self, name: str, target: Arch) -> dict[str, Any]:
        recipe = self._recipes.toolchain(name)
        if target not in recipe.compilers:
            raise HostError(f"toolchain {name} has no compiler for {target}", hint="see compilers in its recipe")
        return {
            "format": _TOOLCHAIN_FORMAT,
            "recipe": recipe.model_dump(mode="json", exclude={"compilers"}),
            "compiler": recipe.compilers[target],
            "host": host_arch(),
        }

    def _build_module(
        self, name: str, recipe: ModuleBuild, kernel: Kernel, directory: Path, deadline: Deadline
    ) -> Built:
        headers = self._headers(kernel)
        source = self._kernel_source(kernel, recipe.paths)
        toolchain, tools = self.toolchain(recipe.toolchain, kernel.arch)
        build = directory / "build"
        place = build / recipe.directory
        place.mkdir(parents=True)
        for path in recipe.paths:
            shutil.copyfile(source.path(path), build / path)
        (place / "Kbuild").write_text(recipe.kbuild)
        self._progress.phase(f"building module {name} for {kernel.release}")
        toolchain.make(
            [
                *("-C", f"/usr/src/linux-headers-{kernel.release}", f"M={BUILD / recipe.directory}"),
                *(f"CC={toolchain.prefix}gcc", "modules"),
            ],
            build,
            deadline,
            what=f"module {name}",
            inputs={"/usr/src": headers.tree},
        )
        made = [path for path in place.glob("*.ko") if module_name(path.name) == module_name(name)]
        if not made:
            raise BuildFailed(f"module {name} was not built by its recipe's Kbuild text")
        # Nothing in a guest reads debugging information, and it is nine tenths of the file.
        strip: list[str | Path] = [f"{toolchain.prefix}strip", "--strip-debug", BUILD / made[0].relative_to(build)]
        toolchain.run(strip, build, deadline)
        return Built({KO: made[0]}, [*tools.packages, *headers.packages, *source.packages], {"release": kernel.release})

    def _headers(self, kernel: Kernel) -> Entry:
        """What modules for a kernel are built against, as a tree that goes to ``/usr/src``."""

        def build(directory: Path, deadline: Deadline) -> Built:
            wanted, fetched = kernel_source.fetch_headers(
                self._archive.apt(self._suite(kernel), kernel.arch),
                self._archive.apt(self._suite(kernel), host_arch()),
                kernel,
                deadline,
            )
            tree = kernel_source.unpack_headers(fetched, directory, deadline)
            return Built({}, manifest_packages(wanted), {"release": kernel.release}, tree=tree)

        inputs = {
            "format": _HEADERS_FORMAT,
            "release": kernel.release,
            "version": kernel.version,
            "host": host_arch(),
        }
        return self._store.get_or_build("headers", kernel.name, kernel.arch, inputs, build, self._progress)

    def _kernel_source(self, kernel: Kernel, paths: Sequence[str]) -> Entry:
        """Files of a kernel's source, by their paths in it."""
        # The archive is large and slow to read: take what every recipe needs of it in one go.
        recipes = (self._recipes.module(name).build for name in self._recipes.names("modules"))
        every = sorted({path for recipe in recipes if recipe for path in recipe.paths} | set(paths))

        def build(directory: Path, deadline: Deadline) -> Built:
            apt = self._archive.apt(self._suite(kernel), kernel.arch)
            package, deb = kernel_source.fetch_source(apt, kernel, deadline)
            self._progress.phase(f"unpacking the source of Linux {kernel.version}")
            files = kernel_source.unpack_source(deb, every, directory, deadline)
            return Built(files, manifest_packages([package]))

        inputs = {"format": _SOURCE_FORMAT, "version": kernel.version, "paths": every}
        return self._store.get_or_build("source", "linux", "all", inputs, build, self._progress)

    def _suite(self, kernel: Kernel) -> FromSuite:
        return self._recipes.kernel(kernel.name)

    def _build_hypervisor(
        self, name: str, recipe: HypervisorRecipe, arch: Arch, directory: Path, deadline: Deadline
    ) -> Built:
        toolchain, tools = self.toolchain(recipe.toolchain, arch)
        files = self._archive.apt(recipe, "source").fetch_source(recipe.package, deadline)
        build = directory / "build"
        build.mkdir()
        self._progress.phase(f"unpacking the source of {name}")
        hypervisor.unpack_source(toolchain, [path for _, path in files], build, deadline)
        self._progress.phase(f"building hypervisor {name} for {arch}")
        made = hypervisor.build(toolchain, build, recipe.target(arch, name).options, ABIS[arch].xen, name, deadline)
        version = re.sub(r"^\d+:", "", files[-1][0].version)
        packages = [*tools.packages, *manifest_packages(file for file, _ in files)]
        return Built({XEN: made}, packages, {"version": version})
