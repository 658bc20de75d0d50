"""One socket's frames on their way to the broker: pipelined, in order, confirmed or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wsgateway.broker.messages import Receipt
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.protocol.frames import Frame
from wsgateway.supervision import supervise

__all__ = ["Offer", "PublishQueue"]

ATTEMPT_TIMEOUT = 1.5
"""Seconds after which an unanswered offer is repeated, with the same id."""
RETRY_PAUSE = 0.1

Offer = Callable[[Frame, str, Mapping[str, str]], "asyncio.Future[Receipt]"]
Patience = Callable[[], float]
NONE: Mapping[str, str] = {}


@dataclass(slots=True, eq=False)
class _Entry:
    frame: Frame
    msg_id: str
    headers: Mapping[str, str]
    since: float  # loop time at which it came
    result: asyncio.Future[Receipt]
    attempt: asyncio.Future[Receipt] | None = None


class PublishQueue:
    """Keeps up to *window* frames in flight; repeats what failed, in order.

    When an offer fails for now, those behind it are awaited, and then all that failed are
    offered again in their order. So frames are stored in order as long as the broker takes them
    in the order in which it gets them.

    A *strict* queue ends with the first refusal: nothing behind the refused frame is offered any
    more. What was offered before the refusal was known, a window at most, the broker may store.

    Args:
        offer: Tries once to store a frame, see `Broker.offer`.
        window: Frames that may wait for the broker; more wait in `put`.
        window_bytes: Bytes that may wait for it; a single larger frame still goes.
        patience: Returns the seconds after which a frame is refused with `BrokerUnavailable`, as
            things are when that is asked.
        strict: Whether the first refusal ends the queue.
    """

    __slots__ = (
        "_bytes",
        "_ended",
        "_entries",
        "_holding",
        "_offer",
        "_patience",
        "_room",
        "_runner",
        "_strict",
        "_window",
        "_window_bytes",
    )

    def __init__(
        self,
        offer: Offer,
        window: int,
        window_bytes: int,
        patience: Patience,
        *,
        strict: bool = False,
    ) -> None:
        self._offer = offer
        self._window = window
        self._window_bytes = window_bytes
        self._patience = patience
        self._strict = strict
        self._ended = False  # given up, or something was refused and the queue is strict
        self._bytes = 0  # of the entries
        self._entries: list[_Entry] = []  # oldest first; those in flight lead
        self._holding = False  # new entries wait until those before them were offered again
        self._runner: asyncio.Task[None] | None = None  # lives while there are entries
        self._room: asyncio.Event | None = None  # set when an entry ends while put waits

    @property
    def pending(self) -> int:
        """Frames whose result is not known yet."""
        return len(self._entries)

    async def put(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str] = NONE
    ) -> asyncio.Future[Receipt]:
        """Send *frame*; wait while the window is full. Return the future of its receipt.

        The future is cancelled when the queue has ended.
        """
        size = len(frame.payload)
        while not self._has_room(size):
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()
        loop = asyncio.get_running_loop()
        if self._ended:
            nothing: asyncio.Future[Receipt] = loop.create_future()
            nothing.cancel()
            return nothing
        entry = _Entry(frame, msg_id, headers, loop.time(), loop.create_future())
        hold = self._holding or any(self._waits(earlier) for earlier in self._entries)
        self._entries.append(entry)
        self._bytes += size
        if not hold:
            self._try(entry)
        if self._runner is None or self._runner.done():
            self._runner = supervise(self._run, "wsgateway-publish-queue")
        return entry.result

    def give_up(self) -> None:
        """Forget what is not stored, and take no more. Idempotent."""
        if self._runner is not None:
            self._runner.cancel()
        self._end_behind(0)
        if self._room is not None:
            self._room.set()

    def _has_room(self, size: int) -> bool:
        if not self._entries or self._ended:
            return True
        return len(self._entries) < self._window and self._bytes + size <= self._window_bytes

    def _waits(self, entry: _Entry) -> bool:
        """Whether what comes behind *entry* must wait, though the runner may not know yet.

        It will be offered again, or, in a strict queue, it was refused.
        """
        attempt = entry.attempt
        if attempt is None:
            return True
        return attempt.done() and (self._for_now(attempt) or (self._strict and _failed(attempt)))

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
        at = self._entries.index(entry)
        del self._entries[at]
        self._bytes -= len(entry.frame.payload)
        error = attempt.exception()
        if not entry.result.done():
            if error is None:
                entry.result.set_result(attempt.result())
            else:
                entry.result.set_exception(error)
        if error is not None and self._strict:
            self._end_behind(at)
        if self._room is not None:
            self._room.set()

    def _end_behind(self, at: int) -> None:
        """Forget the entries from index *at* on, and take no more."""
        self._ended = True
        for entry in self._entries[at:]:
            self._bytes -= len(entry.frame.payload)
            entry.result.cancel()
            if entry.attempt is not None:
                entry.attempt.cancel()
        del self._entries[at:]

    async def _again(self) -> None:
        """Let all attempts settle, end those that are decided, offer the rest again in order.

        Once the oldest is too late all are refused: a client that sends them again does so in
        order.
        """
        self._holding = True
        attempts = {entry.attempt for entry in self._entries if entry.attempt is not None}
        await asyncio.wait(attempts, timeout=ATTEMPT_TIMEOUT)
        late = asyncio.get_running_loop().time() >= self._entries[0].since + self._patience()
        for entry in list(self._entries):
            attempt = entry.attempt
            if entry not in self._entries:  # it ended with a refused one before it
                continue
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
            BrokerUnavailable(f"not stored within {self._patience():g} s; send it again later")
        )
        return refusal


def _failed(attempt: asyncio.Future[Receipt]) -> bool:
    return attempt.exception() is not None
