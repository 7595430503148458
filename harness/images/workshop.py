"""Where code is compiled: kernel modules and hypervisors, from Debian's sources, each result kept in the store."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import BuildFailed, HostError
from harness.images import hypervisor, kernel_source, small_kernel
from harness.images.arch import ABIS, Arch, host_arch
from harness.images.archive import Archive, manifest_packages
from harness.images.incremental import build_directory, digests, every_file, synchronise, whole_hash
from harness.images.kernel import IMAGE, XEN, Kernel
from harness.images.manifest import Package
from harness.images.modules import module_name
from harness.images.patches import apply
from harness.images.recipe import FromSuite, HypervisorRecipe, KernelBuild, ModuleBuild, Recipes
from harness.images.store import Built, Entry, Store
from harness.images.toolchain import BUILD, Toolchain, make_root
from harness.images.under_test import Override, tree_files
from harness.progress import Progress

# Counted up when what is made from the same inputs changes, so that stores forget what older builders made.
_TOOLCHAIN_FORMAT = 1
_HEADERS_FORMAT = 1
_SOURCE_FORMAT = 1
_MODULE_FORMAT = 1
_HYPERVISOR_FORMAT = 1
_KERNEL_FORMAT = 2
_PATCHING_FORMAT = 1

KO = "module.ko"
#: The fact of a small kernel that names the modules which it has built in.
BUILT_IN = "builtin"
_LIST_S = 60.0


class Workshop:
    """Builds what recipes say how to build.

    Nothing is fetched before something must be compiled: what was built once needs no toolchain any more.
    """

    def __init__(self, recipes: Recipes, store: Store, archive: Archive, progress: Progress) -> None:
        self._recipes = recipes
        self._store = store
        self._archive = archive
        self._progress = progress

    def module(self, name: str, kernel: Kernel, override: Override | None = None) -> Entry:
        """A module built against the kernel that it is for; its file is :data:`KO`.

        :param override: patches to the kernel's source, or a tree to take in its place.
        :raises BuildFailed: a patch does not apply, or it does not compile.
        :raises HostError: no recipe says how to build it for this architecture, or what it takes cannot be had.
        """
        recipe = self._module_build(name, kernel.arch)
        own = tree_files(override.sources[0], recipe.paths) if override and override.kind == "tree" else {}
        inputs = {
            "format": _MODULE_FORMAT,
            "recipe": recipe.model_dump(mode="json", exclude={"architectures", "toolchain"}),
            "toolchain": self._toolchain_inputs(recipe.toolchain, kernel.arch),
            "kernel": kernel.release,
            "version": kernel.version,
            **_override_inputs(override, own),
        }

        def build(directory: Path, deadline: Deadline) -> Built:
            files, packages = dict(own), []
            if not files:
                source = self._kernel_source(kernel, recipe.paths)
                files, packages = {path: source.path(path) for path in recipe.paths}, list(source.packages)
            for path, file in files.items():
                place = directory / "build" / path
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
            _check_unchanged(own, directory / "build", inputs)
            patches = override.patches if override else ()
            return self._build_module(name, recipe, kernel, patches, packages, directory, deadline)

        return self._store.get_or_build("module", name, kernel.arch, inputs, build, self._progress, need=[KO])

    def hypervisor(self, name: str, arch: Arch, override: Override | None = None) -> Entry:
        """A hypervisor; its file is :data:`XEN`, uncompressed. Parameters and errors as for :meth:`module`."""
        recipe = self._recipes.hypervisor(name)
        target = recipe.target(arch, name)
        own: dict[str, Path] = {}
        if override and override.kind == "tree":
            own = every_file(override.sources[0], Deadline.after(_LIST_S, "a source tree to be listed"))
        inputs = {
            "format": _HYPERVISOR_FORMAT,
            "recipe": recipe.model_dump(mode="json", exclude={"architectures", "toolchain"}),
            "target": target.model_dump(mode="json"),
            **_override_inputs(override, own),
        }
        built = recipe.source == "build" or override is not None
        if built:
            inputs["toolchain"] = self._toolchain_inputs(recipe.toolchain, arch)

        def build(directory: Path, deadline: Deadline) -> Built:
            if built:
                return self._build_hypervisor(name, arch, override, own, inputs, directory, deadline)
            wanted, fetched = self._archive.fetch(recipe, arch, target.packages, deadline, only=hypervisor.PACKAGES)
            hypervisor.unpack(fetched, directory / XEN, directory, deadline)
            return Built({XEN: directory / XEN}, manifest_packages(wanted), {"version": wanted[0].version})

        return self._store.get_or_build("hypervisor", name, arch, inputs, build, self._progress, need=[XEN])

    def kernel(self, kernel: Kernel, override: Override, small: Sequence[str]) -> Entry:
        """A small kernel of the source of a packaged one, with patches, or of a tree. Errors as for :meth:`module`.

        :param small: the parts of its configuration, by their names; a machine that has none can have no such kernel.

        Its file is ``vmlinux`` or ``Image``, named :data:`IMAGE`.
        """
        recipe = self._recipes.kernel(kernel.name)
        how = recipe.build
        if how is None or not small:
            what = "this machine" if how is not None else f"kernel {kernel.name}"
            raise HostError(
                f"{override.option}: nothing says how to build a small kernel for {what}",
                hint="see small_kernel in images/machines/ and build in images/kernels/; an image is tested as it is",
            )
        configs = [self._recipes.config(name) for name in small]
        format_ = recipe.packages(kernel.arch, kernel.name).format
        own: dict[str, Path] = {}
        if override.kind == "tree":
            own = every_file(override.sources[0], Deadline.after(_LIST_S, "a source tree to be listed"))
        inputs = {
            "format": _KERNEL_FORMAT,
            "configs": configs,
            "trim": how.trim,
            "image": format_,
            "toolchain": self._toolchain_inputs(how.toolchain, kernel.arch),
            "version": "" if own else kernel.version,
            **_override_inputs(override, own),
        }

        def build(directory: Path, deadline: Deadline) -> Built:
            toolchain, tools = self.toolchain(how.toolchain, kernel.arch)
            files, packages, facts = dict(own), list(tools.packages), dict[str, str]()
            if not own:
                source = self._kernel_tree(kernel, how)
                packages += source.packages
                what = f"Linux {kernel.version}"
                files, facts = self._patched(toolchain, source.tree, override, what, directory, deadline)
            with self._build_directory(
                "kernel", kernel.arch, override, tools, [*configs, kernel.version, format_], deadline
            ) as place:
                synchronise(files, place)
                _check_unchanged(own, place, inputs)
                self._progress.phase(f"building a kernel for {kernel.arch}")
                made = small_kernel.build(toolchain, place, configs, format_, deadline)
                shutil.copyfile(made, directory / IMAGE)
                facts[BUILT_IN] = small_kernel.builtin(place)
            if format_ != "Image":
                strip: list[str | Path] = [f"{toolchain.prefix}strip", "--strip-debug", BUILD / IMAGE]
                toolchain.run(strip, directory, deadline)
            return Built({IMAGE: directory / IMAGE}, packages, facts)

        return self._store.get_or_build(
            "small-kernel", kernel.name, kernel.arch, inputs, build, self._progress, need=[IMAGE]
        )

    def builds(self, name: str, arch: Arch) -> bool:
        """Whether a recipe says how to build a module."""
        recipe = self._recipes.module(name).build
        return recipe is not None and arch in recipe.architectures

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

    def _module_build(self, name: str, arch: Arch) -> ModuleBuild:
        recipe = self._recipes.module(name).build
        if recipe is None:
            raise HostError(f"no recipe says how to build module {name}", hint="see build in images/modules/")
        if arch not in recipe.architectures:
            raise HostError(
                f"module {name} is not built for {arch}", hint=f"only for {', '.join(recipe.architectures)}"
            )
        return recipe

    def _build_module(
        self,
        name: str,
        recipe: ModuleBuild,
        kernel: Kernel,
        patches: Sequence[tuple[Path, bytes]],
        packages: Sequence[Package],
        directory: Path,
        deadline: Deadline,
    ) -> Built:
        """Build a module whose files lie in the workspace's ``build``."""
        headers = self._headers(kernel)
        toolchain, tools = self.toolchain(recipe.toolchain, kernel.arch)
        build = directory / "build"
        place = build / recipe.directory
        facts = apply(toolchain, patches, build, ", ".join(recipe.paths), deadline)
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
        return Built(
            {KO: made[0]}, [*tools.packages, *headers.packages, *packages], {"release": kernel.release} | facts
        )

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
        self,
        name: str,
        arch: Arch,
        override: Override | None,
        own: Mapping[str, Path],
        inputs: Mapping[str, Any],
        directory: Path,
        deadline: Deadline,
    ) -> Built:
        recipe = self._recipes.hypervisor(name)
        toolchain, tools = self.toolchain(recipe.toolchain, arch)
        files, packages, facts = dict(own), list(tools.packages), {"version": ""}
        if not own:
            source = self._hypervisor_source(recipe, toolchain)
            packages += source.packages
            facts["version"] = source.facts["version"]
            what = f"the source of {recipe.package} {facts['version']}"
            files, more = self._patched(toolchain, source.tree, override, what, directory, deadline)
            facts |= more
        kind = [name, str(inputs["target"])]
        with self._build_directory(recipe.package, arch, override, tools, kind, deadline) as build:
            synchronise(files, build)
            _check_unchanged(own, build, inputs)
            self._progress.phase(f"building hypervisor {name} for {arch}")
            made = hypervisor.build(toolchain, build, recipe.target(arch, name).options, ABIS[arch].xen, name, deadline)
            shutil.copyfile(made, directory / XEN)
        return Built({XEN: directory / XEN}, packages, facts)

    def _patched(
        self,
        toolchain: Toolchain,
        tree: Path,
        override: Override | None,
        what: str,
        directory: Path,
        deadline: Deadline,
    ) -> tuple[dict[str, Path], dict[str, str]]:
        """The files of a stored source, patches of the user's applied; and what is to be known of these."""
        files = every_file(tree, deadline)
        if override is None:
            return files, {}
        # Only what the patches change is copied: the source of a kernel is large.
        copies = directory / "patched"
        touched = [path for path in files if any(path.encode() in content for content in override.contents)]
        for path in touched:
            (copies / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(files[path], copies / path, follow_symlinks=False)
            shutil.copymode(files[path], copies / path, follow_symlinks=False)
        copies.mkdir(exist_ok=True)
        facts = apply(toolchain, override.patches, copies, what, deadline)
        left = {path: file for path, file in files.items() if path not in set(touched)}
        return left | every_file(copies, deadline), facts

    def _build_directory(
        self, what: str, arch: Arch, override: Override | None, tools: Entry, kind: Sequence[str], deadline: Deadline
    ) -> AbstractContextManager[Path]:
        """Where something is compiled incrementally: a place for each tree, and one for all patches to a recipe's."""
        tree = str(override.sources[0].resolve()) if override and override.kind == "tree" else ""
        key = whole_hash({"what": what, "arch": arch, "tree": tree, "tools": tools.key, "kind": json.dumps(kind)})
        return build_directory(
            self._store.root / "work", key, deadline, lambda: self._progress.message(f"waiting for a build of {what}")
        )

    def _kernel_tree(self, kernel: Kernel, how: KernelBuild) -> Entry:
        """A kernel's source as a tree, without what is never compiled."""

        def build(directory: Path, deadline: Deadline) -> Built:
            apt = self._archive.apt(self._suite(kernel), kernel.arch)
            package, deb = kernel_source.fetch_source(apt, kernel, deadline)
            self._progress.phase(f"unpacking the source of Linux {kernel.version}")
            kernel_source.unpack_tree(deb, how.trim, directory / "source", directory, deadline)
            return Built({}, manifest_packages([package]), tree=directory / "source")

        inputs = {"format": _SOURCE_FORMAT, "version": kernel.version, "trim": how.trim}
        return self._store.get_or_build("source", "linux-tree", "all", inputs, build, self._progress)

    def _hypervisor_source(self, recipe: HypervisorRecipe, toolchain: Toolchain) -> Entry:
        """Xen's source as a tree, Debian's patches applied."""

        def build(directory: Path, deadline: Deadline) -> Built:
            files = self._archive.apt(recipe, "source").fetch_source(recipe.package, deadline)
            (directory / "source").mkdir()
            self._progress.phase(f"unpacking the source of {recipe.package}")
            hypervisor.unpack_source(toolchain, [path for _, path in files], directory / "source", deadline)
            version = files[-1][0].version
            return Built(
                {}, manifest_packages(file for file, _ in files), {"version": version}, tree=directory / "source"
            )

        inputs = {"format": _SOURCE_FORMAT, "suite": recipe.suite, "package": recipe.package}
        return self._store.get_or_build("source", recipe.package, "all", inputs, build, self._progress)


def _override_inputs(override: Override | None, own: Mapping[str, Path]) -> dict[str, Any]:
    """What an override adds to what a result is made from: nothing where there is none."""
    if override is None:
        return {}
    if override.kind == "tree":
        return {"tree": whole_hash(digests(own))}
    return {
        "patching": _PATCHING_FORMAT,
        "patches": [hashlib.sha256(content).hexdigest() for content in override.contents],
    }


def _check_unchanged(own: Mapping[str, Path], build: Path, inputs: Mapping[str, Any]) -> None:
    """See that what is built is what its key says: somebody may be writing to the tree meanwhile."""
    if own and whole_hash(digests({path: build / path for path in own})) != inputs["tree"]:
        raise HostError("the source tree was changed while it was read", hint="run again")
