"""What can go wrong, and whose fault it is.

::

    HarnessError
     ├ ScenarioError        the scenario file is wrong: file:line:column, key, hint
     ├ UsageError           the command line is wrong
     ├ HostError            QEMU, disk, image, missing tool: an ERROR, never a FAIL
     │  └ BuildFailed       code does not compile, or a patch does not apply
     ├ Unsupported          a kernel or a hypervisor lacks what the scenario is about: a SKIP
     ├ BootError            the machine never came up; carries the console's tail
     └ GuestError           the machine came up and then something in it went wrong
        ├ CommandFailed     a command or probe call in the guest was refused
        ├ GuestCrash        a layer's console shows a crash: the product's fault, a FAIL
        ├ GuestHang         no answer within the deadline
        └ LostConnection    the connection to the guest broke
    ExpectationFailed       an assertion of the scenario does not hold: a FAIL

Only :class:`GuestCrash` and :class:`ExpectationFailed` blame the product; everything else is an
ERROR, because a release gate and ``git bisect run`` act on the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class HarnessError(Exception):
    """Base of every error that the harness raises on purpose.

    :param message: what failed, in one line.
    :param hint: what the reader can do about it.
    :param layer: where it failed: ``qemu``, ``xen``, or a guest's name such as ``guest`` or ``dom0``.
    :param tail: the last lines of the layer's console, or of a program's output, oldest first, already free of control
        characters.
    :param log: the file that holds the whole of it.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        layer: str | None = None,
        tail: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.layer = layer
        self.tail = tuple(tail)
        self.log = log

    def explain(self) -> str:
        """The whole story as text: what, where, the console's last lines, the log and the hint."""
        lines = [self.message if self.layer is None else f"{self.layer}: {self.message}"]
        if self.tail:
            whose = "console lines" if self.layer or self.log else "lines that it printed"
            lines += [f"  last {whose}:", *(f"    {line}" for line in self.tail)]
        if self.log is not None:
            lines.append(f"  log: {self.log}")
        if self.hint is not None:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in a file that a person wrote.

    ``str()`` gives ``scenarios/x.yaml:12:9 drive[1].virtio_mmio.notify.queue: must be 0..1023, got 4096``.

    :param file: as the person named it.
    :param line: 1-based; 0 when the file as a whole is at fault.
    :param column: 1-based; 0 likewise.
    :param key: dotted path, ``drive[1].balloon.inflate.pages``; empty for the top.
    :param message: what was expected and what was found.
    :param hint: the nearest known name, or how to write it.
    """

    file: str
    line: int
    column: int
    key: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        text = f"{where} {self.key}: {self.message}" if self.key else f"{where}: {self.message}"
        return text if self.hint is None else f"{text} (hint: {self.hint})"


class ScenarioError(HarnessError):
    """A scenario or recipe file is wrong. All of its problems are reported at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class UsageError(HarnessError):
    """The command line asks for something that does not exist or makes no sense."""


class HostError(HarnessError):
    """The host is at fault: QEMU, a tool, the disk, an image, a package mirror.

    :attr:`may_pass` is set where another try may succeed, as when QEMU was killed from outside.
    """

    may_pass = False


class BuildFailed(HostError):
    """Code under test, or a recipe's, does not build: there is nothing to boot, so nothing that could FAIL.

    :param output: all that the build printed, line by line; empty where the message says it all.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, tail: Sequence[str] = (), output: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint, tail=tail)
        self.output = tuple(output)


class Unsupported(HarnessError):
    """The kernel or the hypervisor that was booted does not have what the scenario is about."""


class BootError(HarnessError):
    """The machine did not come up, and no crash on its console says why."""


class GuestError(HarnessError):
    """Something inside the running machine went wrong."""


class CommandFailed(GuestError):
    """A command in a guest exited with a status that the step did not ask for."""


class GuestCrash(GuestError):
    """A layer's console shows a crash that the scenario did not provoke on purpose."""


class GuestHang(GuestError):
    """The guest did not answer within the deadline, and nothing shows why."""


class LostConnection(GuestError):
    """The connection to the guest broke while the machine was still running."""


class ExpectationFailed(AssertionError):
    """One or more assertions of the scenario do not hold."""
