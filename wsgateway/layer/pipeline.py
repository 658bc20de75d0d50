"""Sends that follow each other closely, to one normal channel: on their way, not waited for.

Waiting for each message to be stored costs a round trip to JetStream. A pipeline sends them as a
fast-ingest batch instead, and keeps each one until the server has stored it. It only runs
while the channel is known to have room, so a sender hears of a full channel as before. If a
message is refused nonetheless (others filled the channel meanwhile), or the connection or the
stream's leader is lost, what is not stored is sent again, one by one and in order, under the
same ids; until that is done nobody sends anything new.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from wsgateway.broker.nats.fast_batch import FastBatch
from wsgateway.broker.nats.jetstream import ATTEMPT_TIMEOUT
from wsgateway.broker.nats.link import Backoff, LinkState
from wsgateway.exceptions import BrokerClosed, BrokerError, BrokerUnavailable, QueueFull

if TYPE_CHECKING:
    from wsgateway.layer.loops import Node

__all__ = ["LARGE", "Haste", "Pipeline"]

logger = logging.getLogger("wsgateway.layer")

LARGE = 64 * 1024
"""Bytes above which a message is waited for; bounds what a pipeline holds."""
PAUSE = 0.005
"""Seconds between two sends to the same channel below which the sender is in a burst."""
HASTY_AFTER = 3
"""How many such pauses in a row begin a pipeline."""
HOLD_OFF = 64
"""Further sends after which a pipeline is tried again, when it could not begin."""
CHANNELS_NOTED = 10_000
"""Channels whose senders are watched."""
TICK = 0.005
"""Seconds without another message after which the batch is ended."""
LEAST_ROOM = 8
"""Messages that the channel must have room for, or it is not worth the while."""
COUNT_VALID = 1.0
"""Seconds after which the room is counted again."""
RESEND_FOR = 100.0
"""Seconds that a message is sent again; less than the stream remembers ids, two minutes."""


class _Sent(NamedTuple):
    payload: bytes
    msg_id: str
    until: float  # when it is given up; the loop's clock


class Haste:
    """Notices senders who do not pause between two sends to the same channel."""

    def __init__(self) -> None:
        self._noted: dict[str, tuple[float, int]] = {}  # when the last send ended; short pauses

    def begins(self, channel: str) -> bool:
        """Take note of a send that begins; say whether it follows others closely."""
        ended, count = self._noted.get(channel, (0.0, 0))
        count = count + 1 if time.monotonic() - ended < PAUSE else 0
        if len(self._noted) >= CHANNELS_NOTED:
            self._noted.clear()
        self._noted[channel] = (ended, count)
        return count >= HASTY_AFTER

    def sent(self, channel: str) -> None:
        """Take note of a send that has ended."""
        _, count = self._noted.get(channel, (0.0, 0))
        self._noted[channel] = (time.monotonic(), count)

    def hold_off(self, channel: str) -> None:
        """Let more sends pass before one is said to be in a burst again."""
        self._noted[channel] = (time.monotonic(), -HOLD_OFF)


class Pipeline:
    """One burst of messages to one normal channel. Call it in the node's loop.

    Args:
        node: Where.
        subject: The channel's.
        lifetime: Seconds that a message is kept at most.
        count_room: Returns how many more messages the channel may hold.
        restore: Makes the stream anew if it is gone.
        on_end: Called once, when all is stored.
    """

    def __init__(
        self,
        node: Node,
        subject: str,
        lifetime: int,
        *,
        count_room: Callable[[], Awaitable[int]],
        restore: Callable[[], Awaitable[object]],
        on_end: Callable[[], object],
    ) -> None:
        self._node = node
        self._subject = subject
        self._lifetime = lifetime
        self._headers = {"Nats-TTL": f"{lifetime}s"}
        self._count_room = count_room
        self._restore = restore
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._unstored: deque[_Sent] = deque()
        self._batch: FastBatch | None = None
        self._room = 0  # messages that may still be sent
        self._enough = 0  # room below which it is counted again
        self._counted = 0.0
        self._counting: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._is_full = False  # the server refuses what is sent again
        self._begun = False
        self._over = False
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._seen = 0  # messages sent at the last tick
        self._progress = 0.0  # when a message was last stored, or none was on its way
        self._unhook = (node.link.on_lost(self._give_up), node.link.on_closing(self.finish))

    # -- for senders ---------------------------------------------------------------------

    async def begin(self, payload: bytes) -> bool:
        """As `send`, for the first message; returns False too if the server refuses a batch."""
        try:
            await self._count()
            if self._room < LEAST_ROOM:
                self._end()
                return False
            batch = self._batch = FastBatch(self._node.link, self._subject, self._on_answer)
            self._append(payload)
        except BaseException:
            self._end()
            raise
        self._begun = True
        self._progress = self._loop.time()
        self._tick()
        while self._batch is batch and not batch.is_open:
            await self._change()
        if not batch.is_open and not batch.has_ended:  # what became of it is not known
            await self.settle()
            return True
        return batch.is_open or batch.stored > 0

    async def send(self, payload: bytes) -> bool:
        """Send a message, or return False: all before it is stored, and it is to be waited for.

        Raises:
            QueueFull: Not even what was sent before finds room.
            BrokerUnavailable: What was sent before is not stored for too long.
        """
        if self._takes(payload) and not self._turn.locked():
            return await self._write(payload)
        deadline = self._deadline()
        async with self._turn:  # one of those who wait looks at what changes
            while not self._over:
                if self._takes(payload):
                    return await self._write(payload)
                if self._begun and (self._room <= 0 or len(payload) > LARGE):
                    await self.settle()
                else:
                    self._refuse_full()
                    await self._change(deadline)
        return False

    def _takes(self, payload: bytes) -> bool:
        batch = self._batch
        if batch is None or not batch.takes_more:
            return False
        return self._room > 0 and len(payload) <= LARGE

    async def _write(self, payload: bytes) -> bool:
        """Send a message; return once it would outlive this process."""
        self._append(payload)
        batch, link = self._batch, self._node.link
        while batch is self._batch and not link.is_written:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return True

    async def settle(self) -> None:
        """Return once everything is stored, and the pipeline over.

        Raises:
            QueueFull: It finds no room; it is kept, and sent again.
            BrokerUnavailable: It takes too long; likewise.
        """
        deadline = self._deadline()
        while not self._over:
            self._refuse_full()
            self._end_batch()
            if not self._over:
                await self._change(deadline)

    async def discard(self) -> None:
        """End it; what is not stored is dropped."""
        self._unstored.clear()
        if self._recovering is not None:
            self._recovering.cancel()
        self._end()

    async def finish(self) -> None:
        """As `settle`, as far as possible."""
        with contextlib.suppress(BrokerError):
            await self.settle()

    # -- sending -------------------------------------------------------------------------

    def _append(self, payload: bytes) -> None:
        assert self._batch is not None
        message = _Sent(payload, secrets.token_hex(12), self._deadline(RESEND_FOR))
        self._batch.append(payload, {"Nats-Msg-Id": message.msg_id, **self._headers})
        self._unstored.append(message)
        self._room -= 1
        if self._counting is None and (
            self._room < self._enough or self._loop.time() - self._counted > COUNT_VALID
        ):
            self._counting = self._loop.create_task(self._recount(), name="wsgateway-count")

    async def _count(self) -> None:
        # Half of it: the other half is for those who send meanwhile
        self._room = (await self._count_room() - len(self._unstored)) // 2
        self._enough = self._room // 2
        self._counted = self._loop.time()

    async def _recount(self) -> None:
        try:
            await self._count()
        except BrokerError as exc:
            logger.debug("cannot count %s: %s", self._subject, exc)
            self._room = 0
        self._counting = None
        self._changed.set()

    def _on_answer(self) -> None:
        batch = self._batch
        if batch is None:
            return
        while len(self._unstored) > batch.sent - batch.stored:
            self._unstored.popleft()
            self._progress = self._loop.time()
        if batch.has_ended:
            if not batch.is_open:  # refused; the only message is that of `begin`
                self._unstored.clear()
            self._give_up()
        self._changed.set()

    def _tick(self) -> None:
        batch = self._batch
        if batch is None:
            return
        now = self._loop.time()
        if not self._unstored:
            self._progress = now
        if now - self._progress > ATTEMPT_TIMEOUT:
            self._give_up()
            return
        if batch.sent == self._seen:
            self._end_batch()
            if self._over:
                return
        self._seen = batch.sent
        self._timer = self._loop.call_later(TICK, self._tick)

    def _end_batch(self) -> None:
        if self._batch is not None and self._batch.is_open:
            with contextlib.suppress(BrokerUnavailable):  # given up when no answer comes
                self._batch.end()
            if not self._unstored:
                self._give_up()

    # -- what became of it ---------------------------------------------------------------

    def _give_up(self) -> None:
        """End the batch; see to what is not stored."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        batch.close()
        if batch.error is not None:
            logger.debug("a batch on %s ended: %s", self._subject, batch.error)
        if self._unstored and self._node.link.state is LinkState.CLOSED:
            self._lose(len(self._unstored), BrokerClosed("the connection was closed"))
            self._end()
        elif self._unstored:
            self._recovering = self._loop.create_task(self._recover(), name="wsgateway-resend")
        else:
            self._end()
        self._changed.set()

    async def _recover(self) -> None:
        try:
            with contextlib.suppress(BrokerUnavailable):
                await self._restore()  # at once, in case that is all that is wrong
            while self._unstored:
                await self._store(self._unstored[0])
                self._unstored.popleft()
                self._is_full = False
        except BrokerClosed:
            pass  # for good
        finally:
            self._lose(len(self._unstored), BrokerClosed("the connection was closed"))
            self._end()

    async def _store(self, message: _Sent) -> None:
        """Store a message, or give it up."""
        backoff = Backoff(0.05, 2.0, 1.0)
        attempt = 0
        while True:
            try:
                if attempt and not self._is_full:
                    await self._restore()
                await self._node.broker.jetstream.publish(
                    self._subject, message.payload, self._headers, msg_id=message.msg_id
                )
                return
            except BrokerClosed:
                raise
            except (QueueFull, BrokerUnavailable) as exc:
                self._is_full = isinstance(exc, QueueFull)
                self._changed.set()
                if self._loop.time() > message.until:
                    return self._lose(1, exc)
            except BrokerError as exc:
                return self._lose(1, exc)
            await asyncio.sleep(backoff.delay(attempt))
            attempt += 1

    def _lose(self, count: int, why: BrokerError) -> None:
        if count:
            logger.error("%d messages on %s were not stored: %s", count, self._subject, why)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        for unhook in self._unhook:
            unhook()
        for what in (self._timer, self._counting):
            if what is not None:
                what.cancel()
        if self._batch is not None:
            self._batch.close()
        self._on_end()
        self._changed.set()

    # -- waiting -------------------------------------------------------------------------

    def _deadline(self, limit: float | None = None) -> float:
        seconds = self._node.link.options.timeout if limit is None else limit
        return self._loop.time() + min(seconds, self._lifetime)

    def _refuse_full(self) -> None:
        if self._is_full:
            raise QueueFull(f"{self._subject} has no room for what was sent to it before")

    async def _change(self, deadline: float | None = None) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout_at(deadline):
                await self._changed.wait()
        except TimeoutError as exc:
            raise BrokerUnavailable(
                f"what was sent to {self._subject} before is not stored yet; "
                "it is kept, and sent again"
            ) from exc
