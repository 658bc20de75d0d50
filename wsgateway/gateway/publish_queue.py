"""One socket's frames on their way to the broker: pipelined, in order, confirmed or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wsgateway import counters
from wsgateway.broker.messages import Receipt
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerForbidden,
    BrokerUnavailable,
    MessageTooBig,
    QueueFull,
)
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Topic
from wsgateway.supervision import supervise

__all__ = ["Publish", "PublishQueue"]

ATTEMPT_TIMEOUT = 1.5
"""Seconds without an answer after which frames are published again, with the same ids."""
RETRY_PAUSE = 0.1
REASONS: dict[type[BaseException], str] = {
    QueueFull: "queue_full",
    MessageTooBig: "too_big",
    BrokerForbidden: "forbidden",
    BrokerUnavailable: "unavailable",
    BrokerClosed: "unavailable",
}
"""What metrics call the errors with which frames are refused."""

Publish = Callable[[Frame, str, Mapping[str, str], Topic | None], "asyncio.Future[Receipt]"]
Patience = Callable[[], float]
NONE: Mapping[str, str] = {}


@dataclass(slots=True, eq=False)
class _Entry:
    frame: Frame
    msg_id: str
    headers: Mapping[str, str]
    topic: Topic | None
    since: float  # loop time at which it came
    result: asyncio.Future[Receipt]
    attempt: asyncio.Future[Receipt] | None = None


class PublishQueue:
    """Keeps up to *window* frames in flight; repeats what failed, in order.

    When a frame fails for now, those behind it are awaited, and then all that failed are published
    again in their order. So frames are stored in order as long as the broker takes them in the
    order in which it gets them.

    A *strict* queue ends with the first refusal: nothing behind the refused frame is published any
    more. What was published before the refusal was known, a window at most, the broker may store.

    Args:
        publish: Tries once to store a frame, see `Broker.offer` and `Broker.offer_topic`.
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
        "_loop",
        "_patience",
        "_progress",
        "_publish",
        "_retrying",
        "_room",
        "_strict",
        "_timer",
        "_window",
        "_window_bytes",
    )

    def __init__(
        self,
        publish: Publish,
        window: int,
        window_bytes: int,
        patience: Patience,
        *,
        strict: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._publish = publish
        self._window = window
        self._window_bytes = window_bytes
        self._patience = patience
        self._strict = strict
        self._ended = False  # given up, or something was refused and the queue is strict
        self._bytes = 0  # of the entries
        self._entries: list[_Entry] = []  # oldest first; those in flight lead
        self._progress = 0.0  # loop time at which the oldest entry became that, or was tried
        self._retrying: asyncio.Task[None] | None = None  # while it lives, entries are held
        self._timer: asyncio.TimerHandle | None = None  # looks for silence; while there are any
        self._room: asyncio.Event | None = None  # set when an entry ends while put waits

    @property
    def pending(self) -> int:
        """Frames whose result is not known yet."""
        return len(self._entries)

    async def put(
        self,
        frame: Frame,
        msg_id: str,
        headers: Mapping[str, str] = NONE,
        topic: Topic | None = None,
    ) -> asyncio.Future[Receipt]:
        """Send *frame*; wait while the window is full. Return the future of its receipt.

        It goes to *topic*, or, without one, to the client's service.

        The future is cancelled when the queue has ended.
        """
        size = len(frame.payload)
        while not self._has_room(size):
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()
        result: asyncio.Future[Receipt] = self._loop.create_future()
        if self._ended:
            result.cancel()
            return result
        now = self._loop.time()
        if not self._entries:
            self._progress = now
        holds = self._holds()
        entry = _Entry(frame, msg_id, headers, topic, now, result)
        self._entries.append(entry)
        self._bytes += size
        if not holds:
            self._try(entry)
        if self._timer is None:
            self._timer = self._loop.call_later(ATTEMPT_TIMEOUT, self._on_timer)
        return result

    def give_up(self) -> None:
        """Forget what is not stored, and take no more. Idempotent."""
        if self._retrying is not None:
            self._retrying.cancel()
        self._end_behind(0)
        if self._room is not None:
            self._room.set()

    def _has_room(self, size: int) -> bool:
        if not self._entries or self._ended:
            return True
        return len(self._entries) < self._window and self._bytes + size <= self._window_bytes

    def _holds(self) -> bool:
        """Whether what comes now must wait, though `_on_attempt` may not know yet.

        Something before it is published again, or, in a strict queue, was refused.
        """
        if self._retrying is not None:
            return True
        for entry in self._entries:
            attempt = entry.attempt
            if attempt is None or (attempt.done() and self._blocks(attempt)):
                return True
        return False

    def _blocks(self, attempt: asyncio.Future[Receipt]) -> bool:
        return _is_for_now(attempt) or (self._strict and attempt.exception() is not None)

    def _try(self, entry: _Entry) -> None:
        try:
            attempt = self._publish(entry.frame, entry.msg_id, entry.headers, entry.topic)
        except Exception as exc:
            attempt = self._loop.create_future()
            attempt.set_exception(exc)
        entry.attempt = attempt
        attempt.add_done_callback(self._on_attempt)

    def _on_attempt(self, _: asyncio.Future[Receipt]) -> None:
        """End the entries that are decided, from the oldest on."""
        while self._entries and self._retrying is None:
            head = self._entries[0]
            attempt = head.attempt
            if attempt is None or not attempt.done():
                return
            if _is_for_now(attempt):
                self._retry()
            else:
                self._end(head, attempt)

    def _on_timer(self) -> None:
        """Publish again what the broker is silent about."""
        self._timer = None
        if not self._entries:
            return
        silence = self._loop.time() - self._progress
        if silence >= ATTEMPT_TIMEOUT and self._retrying is None:
            self._retry()
        pause = max(ATTEMPT_TIMEOUT - silence, 0.1 * ATTEMPT_TIMEOUT)
        self._timer = self._loop.call_later(pause, self._on_timer)

    def _end(self, entry: _Entry, attempt: asyncio.Future[Receipt]) -> None:
        at = self._entries.index(entry)
        del self._entries[at]
        self._bytes -= len(entry.frame.payload)
        self._progress = self._loop.time()
        error = attempt.exception()
        if error is None:
            counters.gateway.published.observe(self._progress - entry.since)
        else:
            counters.gateway.not_published[_reason(error)] += 1
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

    def _retry(self) -> None:
        self._retrying = supervise(self._again, "wsgateway-publish-queue")

    async def _again(self) -> None:
        """Wait for all attempts, end those that are decided, publish the rest again in order.

        Once the oldest is too late all are refused: a client that sends them again does so in
        order.
        """
        attempts = {entry.attempt for entry in self._entries if entry.attempt is not None}
        await asyncio.wait(attempts, timeout=ATTEMPT_TIMEOUT)
        late = self._loop.time() >= self._entries[0].since + self._patience()
        is_first = True  # of those that are not decided
        for entry in list(self._entries):
            attempt = entry.attempt
            if entry not in self._entries:  # it ended with a refused one before it
                continue
            is_decided = attempt is not None and attempt.done() and not _is_for_now(attempt)
            # One before it may have been refused: a strict window must not move past that
            if attempt is not None and is_decided and (is_first or not self._strict):
                self._end(entry, attempt)
            elif late:
                self._end(entry, self._refusal())
            else:
                is_first = False
            if attempt is not None:
                attempt.cancel()
        if self._entries:
            await asyncio.sleep(RETRY_PAUSE)
        self._retrying = None
        self._progress = self._loop.time()
        for entry in self._entries:
            self._try(entry)

    def _refusal(self) -> asyncio.Future[Receipt]:
        refusal: asyncio.Future[Receipt] = self._loop.create_future()
        refusal.set_exception(
            BrokerUnavailable(f"not stored within {self._patience():g} s; send it again later")
        )
        return refusal


def _is_for_now(attempt: asyncio.Future[Receipt]) -> bool:
    return attempt.cancelled() or isinstance(attempt.exception(), BrokerUnavailable)


def _reason(error: BaseException) -> str:
    return next((word for kind, word in REASONS.items() if isinstance(error, kind)), "other")
