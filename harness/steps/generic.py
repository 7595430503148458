"""Verbs that every machine has: commands, the console, modules, saved state."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field

from harness.machine.snapshot import restore, save
from harness.oops import sanitize
from harness.scenario.model import LayerName, RegularExpression
from harness.steps.base import Context, Evidence, Params, verb

#: What a domain's answer may take beside the command.
_MARGIN_S = 5
_Timeout = Annotated[float, Field(gt=0, le=3600, description="seconds under KVM; emulation gets more")]


class Run(Params):
    """A command in a guest, as a list of words; no shell takes them apart."""

    layer: Annotated[LayerName | None, Field(description="the guest; by default the one that QEMU boots")] = None
    argv: Annotated[list[str], Field(min_length=1, max_length=64)]
    timeout_s: _Timeout = 30


class Ran(Evidence):
    """What the command left."""

    status: int
    stdout: str
    stderr: str
    seconds: float


@verb("guest.run")
def guest_run(context: Context, params: Run) -> Ran:
    """Run a command in a guest; any exit status is evidence. It goes over SSH, or by xenstore to a domain."""
    if params.layer in context.testbed.domains:
        timeout_s = params.timeout_s * context.machine.time_factor
        ran = context.call(
            "commands.run",
            layer=params.layer,
            timeout_s=params.timeout_s + _MARGIN_S,
            argv=params.argv,
            seconds=timeout_s,
        )
        said = {name: sanitize(ran[name]).strip() for name in ("stdout", "stderr")}
        return Ran(status=ran["status"], seconds=ran["seconds"], **said)
    deadline = context.within(params.timeout_s, params.argv[0])
    done = context.machine.ssh(deadline).run(params.argv, deadline=deadline, check_status=False)
    return Ran(status=done.status, stdout=done.text, stderr=done.error_text, seconds=done.seconds)


class ConsoleRun(Params):
    """A line typed on the console, and what must then appear."""

    send: Annotated[str, Field(max_length=1024, pattern=r"^[ -~]*$")]
    expect: Annotated[RegularExpression, Field(min_length=1, max_length=512, description="a regular expression")]
    timeout_s: _Timeout = 30


class ConsoleSaw(Evidence):
    """What the pattern matched."""

    matched: str
    seconds: float


@verb("console.run")
def console_run(context: Context, params: ConsoleRun) -> ConsoleSaw:
    """Type a line on the guest's console and wait for a pattern."""
    started = time.monotonic()
    with context.machine.console.dialogue() as dialogue:
        dialogue.send_line(params.send)
        matched = dialogue.expect(params.expect, context.within(params.timeout_s, "the console"))
    return ConsoleSaw(matched=matched, seconds=round(time.monotonic() - started, 3))


_Module = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class ModuleLoad(Params):
    """A module that ``load`` of the scenario names too."""

    layer: LayerName | None = None
    module: _Module
    parameters: dict[str, str | int | bool] = {}


class ModuleLoaded(Evidence):
    """Which modules had to be loaded, the module itself last, and its build id."""

    order: list[str]
    build_id: str


@verb("module.load")
def module_load(context: Context, params: ModuleLoad) -> ModuleLoaded:
    """Load a module, with what it depends on."""
    loaded = context.testbed.load_module(params.layer or context.machine.layer, params.module, params.parameters)
    return ModuleLoaded(order=list(loaded.order), build_id=loaded.build_id)


class ModuleUnload(Params):
    """A loaded module."""

    layer: LayerName | None = None
    module: _Module
    timeout_s: _Timeout = 60


class ModuleUnloaded(Evidence):
    """Whether it is still loaded, and how long the kernel took."""

    loaded: bool
    seconds: float


@verb("module.unload")
def module_unload(context: Context, params: ModuleUnload) -> ModuleUnloaded:
    """Unload a module; the step fails when the kernel refuses."""
    started = time.monotonic()
    layer, deadline = params.layer or context.machine.layer, context.within(params.timeout_s, "modules.unload")
    answer = context.testbed.unload_module(layer, params.module, deadline)
    return ModuleUnloaded(loaded=answer["loaded"], seconds=round(time.monotonic() - started, 3))


class SaveRestore(Params):
    """Nothing to set."""


class Restored(Evidence):
    """How long it took and how large the state was."""

    save_seconds: float
    restore_seconds: float
    state_mib: int


@verb("machine.save_restore")
def save_restore(context: Context, _: SaveRestore) -> Restored:
    """Save the machine's state, end QEMU, and let a new QEMU go on from it, at the time that it is by then."""
    machine = context.machine
    state = context.testbed.scratch / "state"
    started = time.monotonic()
    save(machine, state, context.within(60, "the machine's state to be saved"))
    saved = time.monotonic()
    restore(machine, state, context.within(60, "the machine's state to be restored"))
    context.call("clocks.start", now_s=time.time())
    restored = time.monotonic()
    size = state.stat().st_size >> 20
    state.unlink()
    return Restored(save_seconds=round(saved - started, 3), restore_seconds=round(restored - saved, 3), state_mib=size)
