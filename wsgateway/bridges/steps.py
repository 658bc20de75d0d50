"""Setting a bus up: a step that fails keeps no other from being tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable

__all__ = ["Steps"]


class Steps:
    """What was done, and what could not be.

    Attributes:
        lines: What each step has to say, for people; of one that failed, the reason.
        failed: Why steps failed.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failed: list[BusError] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Do a step; remember why it failed."""
        try:
            yield
        except BusError as exc:
            self.fail(exc)

    def fail(self, error: BusError) -> None:
        """Record that a step failed."""
        self.lines.append(f"failed: {error}")
        self.failed.append(error)

    def result(self) -> list[str]:
        """Return the lines.

        Raises:
            BusError: Some steps failed. It has the lines of all of them.
        """
        if not self.failed:
            return self.lines
        may_pass = all(isinstance(error, BusUnavailable) for error in self.failed)
        kind = BusUnavailable if may_pass else BusMisconfigured
        error = kind("; ".join(dict.fromkeys(map(str, self.failed))))
        error.lines = self.lines
        raise error
