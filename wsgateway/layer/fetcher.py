"""The readers' side of a normal channel: fetched ahead, and given back if nobody comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from wsgateway.broker.bus import Closable, new_reply_subject
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.jetstream import ApiError
from wsgateway.exceptions import BrokerError, BrokerUnavailable
from wsgateway.layer import wire
from wsgateway.layer.mailbox import Mailbox
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.subjects import encode_token

if TYPE_CHECKING:
    from wsgateway.layer.connection import LayerConnection
    from wsgateway.layer.normal import NormalChannels

__all__ = ["ACK_WAIT", "Fetcher"]

logger = logging.getLogger("wsgateway.layer")

NANO = 1_000_000_000
ACK_WAIT = 30.0
"""Seconds after which a message that a dead process fetched goes to another."""
PULL_EXPIRES = 2.0
"""Seconds that one request for messages stays open at the server."""
PULL_GRACE = 1.0
"""Seconds after that in which the server should have said so; then it is taken for lost."""
LINGER = 0.25
"""Seconds that fetched messages wait for a reader here before others may have them."""
MAX_BATCH = 64
REMEMBERED = 4096
"""Taken messages that are remembered, to see a second delivery."""


class Fetcher:
    """Fetches one channel's messages for the receivers on one connection.

    Args:
        channels: Whose.
        connection: Where.
        channel: A normal channel.
    """

    def __init__(self, channels: NormalChannels, connection: LayerConnection, channel: str) -> None:
        self.connection = connection
        self.channel = channel
        self.mailbox: Mailbox[tuple[bytes, bytes]] = Mailbox(1, lambda _: False)
        self.closed = False
        """Whether readers have to find another fetcher."""
        self._channels = channels
        self._stream = connection.subjects.stream("chan")
        self._consumer = encode_token(channel)
        # Of its own: what a pull brings carries the channel's subject, not the request's
        self._inbox = new_reply_subject()
        self._batch = 1
        self._task: asyncio.Task[None] | None = None
        self._interest: Closable | None = None  # in the answers, while the task runs
        self._taken: OrderedDict[bytes, None] = OrderedDict()  # sequences of what was given out
        self._open = 0  # messages that the server may still send for the last request
        self._overdue = 0.0  # when that request has ended, whatever the server says
        self._changed = asyncio.Event()  # something came, or the request has ended
        self._lost = False  # the consumer is gone
        self._backoff = Backoff(0.05, 2.0, 1.0, jitter=0.5)

    # From any thread

    def want(self) -> None:
        """See to it that messages are fetched."""
        if asyncio._get_running_loop() is self.connection.loop:
            self._want()
        else:
            self.connection.loop.call_soon_threadsafe(self._want)

    def taken(self, ack: bytes) -> None:
        """Tell the server that a receiver has the message."""
        if asyncio._get_running_loop() is self.connection.loop:
            self._acknowledge(ack)
        else:
            self.connection.loop.call_soon_threadsafe(self._acknowledge, ack)

    async def close(self) -> None:
        """Stop fetching; give back what nobody took, before the connection disconnects."""
        self.closed = True

        async def close() -> None:
            if self._task is not None:
                self._task.cancel()
            if self._interest is not None:
                self._interest.close()  # or our own request gets back what is given back
            self._give_back()

        if self.connection.usable:  # otherwise others get it after `ACK_WAIT`
            await self.connection.call(close)

    # In the connection's loop

    def _want(self) -> None:
        if self.closed:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"wsgateway-read-{self.channel}")
        self._changed.set()

    def _acknowledge(self, ack: bytes) -> None:
        self._taken[_sequence(ack)] = None
        if len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)
        with contextlib.suppress(BrokerUnavailable):  # it is seen again, and then known
            self.connection.publish(ack.decode(), b"+ACK")
        if not self._open:
            self._changed.set()

    def _give_back(self) -> None:
        while self.mailbox.queue:
            with contextlib.suppress(IndexError, BrokerError):
                _, ack = self.mailbox.queue.popleft()
                self.connection.publish(ack.decode(), b"-NAK")

    async def _run(self) -> None:
        self._interest = interest = self.connection.bus.subscribe(self._inbox, self._on_answer)
        hook = self.connection.bus.on_lost(self._on_lost)
        try:
            await self._serve()
        finally:
            interest.close()
            hook.close()
            self._channels.forget(self)

    async def _serve(self) -> None:
        attempt = 0
        while True:
            try:
                await self._prepare()
                attempt = 0
                if await self._fetch():
                    return
                await asyncio.sleep(self._backoff.delay(0))  # it may be refused again
            except BrokerError as exc:
                log = logger.warning if attempt == 3 else logger.debug
                log("cannot read channel %s: %s; retrying", self.channel, exc)
                await asyncio.sleep(self._backoff.delay(attempt))
                attempt += 1
                if not self.mailbox.reading:
                    return
            except Exception:  # readers wait for this task
                logger.exception("reading channel %s failed; retrying", self.channel)
                await asyncio.sleep(self._backoff.delay(attempt))
                attempt += 1

    async def _prepare(self) -> None:
        await self.connection.ready()
        await self._channels.ensure(self.connection)
        subject = self.connection.subjects.channel(self.channel)
        name = f"CONSUMER.CREATE.{self._stream}.{self._consumer}.{subject}"
        config = {
            "durable_name": self._consumer,
            "name": self._consumer,
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * NANO),
            "filter_subject": subject,
            "max_ack_pending": 10_000,
            "inactive_threshold": int(86400 * NANO),
        }
        try:
            await self.connection.broker.jetstream.api(
                name, {"stream_name": self._stream, "config": config}
            )
        except ApiError:
            self._channels.doubt(self.connection)
            raise
        self._lost = False

    async def _fetch(self) -> bool:
        """Ask for messages while somebody reads; return True once nobody does."""
        while not self._lost:
            self._changed.clear()
            mailbox = self.mailbox
            if mailbox.reading and not self._open and len(mailbox.queue) <= self._batch // 2:
                self._request()
            try:
                async with asyncio.timeout(LINGER):
                    await self._changed.wait()
                continue
            except TimeoutError:
                pass
            if self._open and time.monotonic() > self._overdue:
                break  # the server forgot the request: see to the consumer, then again
            if mailbox.reading:
                continue
            if mailbox.queue and time.monotonic() - mailbox.used > LINGER:
                self._batch = 1
                self._give_back()
            if not self._open and not mailbox.queue:
                return True
        self._open = 0
        return False

    def _request(self) -> None:
        self._open = max(self._batch, self.mailbox.reading)
        self._overdue = time.monotonic() + PULL_EXPIRES + PULL_GRACE
        request = {"batch": self._open, "expires": int(PULL_EXPIRES * NANO)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        self.connection.publish(subject, json.dumps(request).encode(), reply=self._inbox)

    def _on_answer(self, _s: bytes, reply: bytes, data: bytes, raw: bytes | None) -> None:
        status = None if reply else hdrs.status(raw)  # a message may begin with a status, too
        if status is None:
            self._on_message(data, reply)
            if self._open == 0:
                return  # of a request that was taken for lost
            self._open -= 1
            if self._open == 0:
                self._batch = min(MAX_BATCH, 2 * self._batch)
                self._changed.set()
        elif status != 100:  # a heartbeat
            self._lost = status not in (404, 408)
            self._open = 0
            self._changed.set()

    def _on_lost(self) -> None:
        self._lost = True
        self._changed.set()

    def _on_message(self, data: bytes, ack: bytes) -> None:
        if _sequence(ack) in self._taken:  # our acknowledgement was lost
            self._acknowledge(ack)
        else:
            self.mailbox.put_always((wire.framed(data), ack))


def _sequence(ack: bytes) -> bytes:
    """Return the stream sequence in an acknowledgement's subject, of the old or new layout."""
    tokens = ack.split(b".")
    return tokens[5] if len(tokens) == 9 else tokens[7]
