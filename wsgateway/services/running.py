"""The handlers that run in one process: side by side, or one alone; and those that hang."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgateway.broker.work import Job

__all__ = ["Run", "Running"]


class Run:
    """One call of a handler.

    Attributes:
        name: Says what is handled, for the log.
        job: What is handled; None if that is nothing that a client sent.
        began: When, on the monotonic clock.
        coroutine: An asynchronous handler's; None before it began.
        thread: Identifies the thread of a synchronous handler; None before it began.
        warned: Whether somebody was told that it takes long.
    """

    __slots__ = ("began", "coroutine", "job", "name", "thread", "warned")

    def __init__(self, name: Callable[[], str], job: Job | None = None) -> None:
        self.name = name
        self.job = job
        self.began = monotonic()
        self.coroutine: Any = None
        self.thread: int | None = None
        self.warned = False

    @property
    def log_fields(self) -> dict[str, object]:
        """Names what is handled in the log."""
        return {} if self.job is None else self.job.log_fields

    def stack(self) -> str:
        """Return where the handler is now, as a traceback shows it."""
        frames: list[FrameType] = []
        if self.thread is not None:
            top = sys._current_frames().get(self.thread)
            return "".join(traceback.format_stack(top)) if top is not None else ""
        awaited = self.coroutine
        while awaited is not None:
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
            if frame is None:
                break
            frames.append(frame)
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
        lines = ((frame, frame.f_lineno) for frame in frames)
        return "".join(traceback.StackSummary.extract(lines).format())


class Running:
    """The handlers that run in this process.

    Args:
        patience: Seconds that a handler which wants to be alone waits for those that run; one that
            takes longer hangs, and counts as away.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._runs: set[Run] = set()
        self._open = asyncio.Event()  # not set while a handler is, or waits to be, alone
        self._open.set()
        self._ended = asyncio.Event()  # set when a handler ends
        self._one = asyncio.Lock()  # held by the handler that is, or waits to be, alone

    @property
    def now(self) -> list[Run]:
        """Those that run now."""
        return list(self._runs)

    async def begin(self, run: Run) -> None:
        """Begin beside others, once no handler is alone; `end` it."""
        if not self._open.is_set():
            await self._open.wait()  # once: those who wait go before the next that is alone
        self._enter(run)

    def end(self, run: Run) -> None:
        """Note that a handler has ended."""
        self._runs.discard(run)
        self._ended.set()

    def _enter(self, run: Run) -> None:
        run.began = monotonic()
        self._runs.add(run)

    @contextlib.asynccontextmanager
    async def alone(self, run: Run) -> AsyncIterator[None]:
        """Run while no other handler does, as far as those that hang can be ignored.

        If this one hangs, others run again after *patience* seconds.
        """
        await self._one.acquire()
        release = self._release_once()
        timer: asyncio.TimerHandle | None = None
        try:
            self._open.clear()
            while (left := self._longest_wait()) > 0:
                self._ended.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._ended.wait()
            self._enter(run)
            timer = asyncio.get_running_loop().call_later(self._patience, release)
            yield
        finally:
            self.end(run)
            if timer is not None:
                timer.cancel()
            release()

    def _release_once(self) -> Callable[[], None]:
        """Return what lets others run, at its first call."""
        released = False

        def release() -> None:
            nonlocal released
            if not released:
                released = True
                self._open.set()
                self._one.release()

        return release

    def _longest_wait(self) -> float:
        now = monotonic()
        return max((run.began + self._patience - now for run in self._runs), default=0.0)

    def overdue(self, after: float) -> list[Run]:
        """Return the handlers that have run for *after* seconds; each once."""
        limit = monotonic() - after
        found = [run for run in self._runs if run.began < limit and not run.warned]
        for run in found:
            run.warned = True
        return found
