"""Deadlines on the monotonic clock: every wait in the harness takes one."""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness.errors import HarnessError


class DeadlineExceeded(HarnessError):
    """A wait ended without what it waited for. Callers turn it into the error that names the culprit."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on ``time.monotonic()`` by which something must have happened.

    :param at: seconds on the monotonic clock.
    :param what: what is waited for, as it should read in an error: ``the guest's first command``.
    """

    at: float
    what: str

    @classmethod
    def after(cls, seconds: float, what: str) -> Deadline:
        """The deadline that lies ``seconds`` ahead of now."""
        return cls(time.monotonic() + seconds, what)

    def within(self, seconds: float, what: str) -> Deadline:
        """A deadline for a part of the work: ``seconds`` from now, but never later than this one."""
        return Deadline(min(self.at, time.monotonic() + seconds), what)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.at

    def check(self) -> None:
        """Raise :class:`DeadlineExceeded` if the time is up."""
        if self.expired:
            raise DeadlineExceeded(f"timed out waiting for {self.what}")
