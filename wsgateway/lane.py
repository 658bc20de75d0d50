"""One socket's frames on their way to the broker: pipelined, in order, confirmed or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wsgateway.broker.base import Receipt
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.frames import Frame

__all__ = ["Lane", "Offer"]

ATTEMPT_TIMEOUT = 1.5
"""Seconds after which an unanswered offer is repeated, with the same id."""
RETRY_PAUSE = 0.1

Offer = Callable[[Frame, str, Mapping[str, str]], "asyncio.Future[Receipt]"]
NONE: Mapping[str, str] = {}


@dataclass(slots=True)
class _Entry:
    frame: Frame
    msg_id: str
    headers: Mapping[str, str]
    deadline: float  # loop time after which it is refused
    result: asyncio.Future[Receipt]
    attempt: asyncio.Future[Receipt] | None = None


class Lane:
    """Keeps up to *window* frames in flight; repeats what failed, in order.

    When an offer fails for now, those behind it are awaited, and then all that failed are
    offered again in their order. So frames are stored in order as long as the broker takes them
    in the order in which it gets them.

    Args:
        offer: Tries once to store a frame, see `Broker.offer`.
        window: Frames that may wait for the broker; more wait in `put`.
        timeout: Seconds after which a frame is refused with `BrokerUnavailable`.
    """

    __slots__ = ("_entries", "_holding", "_offer", "_room", "_runner", "_timeout", "_window")

    def __init__(self, offer: Offer, window: int, timeout: float) -> None:
        self._offer = offer
        self._window = window
        self._timeout = timeout
        self._entries: list[_Entry] = []  # oldest first; those in flight lead
        self._holding = False  # new entries wait until those before them were offered again
        self._runner: asyncio.Task[None] | None = None  # lives while there are entries
        self._room: asyncio.Event | None = None  # set when an entry ends while put waits

    async def put(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str] = NONE
    ) -> asyncio.Future[Receipt]:
        """Send *frame*; wait while the window is full. Return the future of its receipt."""
        while len(self._entries) >= self._window:
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        entry = _Entry(frame, msg_id, headers, deadline, loop.create_future())
        hold = self._holding or any(self._waits(earlier) for earlier in self._entries)
        self._entries.append(entry)
        if not hold:
            self._try(entry)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run(), name="wsgateway-lane")
        return entry.result

    def _waits(self, entry: _Entry) -> bool:
        """Whether *entry* will be offered again, though the runner may not have noticed yet."""
        attempt = entry.attempt
        return attempt is None or (attempt.done() and self._for_now(attempt))

    def _try(self, entry: _Entry) -> None:
        try:
            entry.attempt = self._offer(entry.frame, entry.msg_id, entry.headers)
        except Exception as exc:
            entry.attempt = asyncio.get_running_loop().create_future()
            entry.attempt.set_exception(exc)

    async def _run(self) -> None:
        while self._entries:
            head = self._entries[0]
            assert head.attempt is not None
            await asyncio.wait({head.attempt}, timeout=ATTEMPT_TIMEOUT)
            if head.attempt.done() and not self._for_now(head.attempt):
                self._end(head, head.attempt)
            else:
                await self._again()

    @staticmethod
    def _for_now(attempt: asyncio.Future[Receipt]) -> bool:
        return attempt.cancelled() or isinstance(attempt.exception(), BrokerUnavailable)

    def _end(self, entry: _Entry, attempt: asyncio.Future[Receipt]) -> None:
        self._entries.remove(entry)
        if not entry.result.done():
            error = attempt.exception()
            if error is None:
                entry.result.set_result(attempt.result())
            else:
                entry.result.set_exception(error)
        if self._room is not None:
            self._room.set()

    async def _again(self) -> None:
        """Let all attempts settle, end those that are decided, offer the rest anew in order.

        Once the oldest is too late all are refused: a client that sends them again does so in
        order.
        """
        self._holding = True
        attempts = {entry.attempt for entry in self._entries if entry.attempt is not None}
        await asyncio.wait(attempts, timeout=ATTEMPT_TIMEOUT)
        late = asyncio.get_running_loop().time() >= self._entries[0].deadline
        for entry in list(self._entries):
            attempt = entry.attempt
            if attempt is not None and attempt.done() and not self._for_now(attempt):
                self._end(entry, attempt)
            elif late:
                self._end(entry, self._refusal())
            if attempt is not None:
                attempt.cancel()
        if self._entries:
            await asyncio.sleep(RETRY_PAUSE)
        self._holding = False
        for entry in self._entries:
            self._try(entry)

    def _refusal(self) -> asyncio.Future[Receipt]:
        refusal: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        refusal.set_exception(
            BrokerUnavailable(f"not stored within {self._timeout} s; send it again later")
        )
        return refusal
