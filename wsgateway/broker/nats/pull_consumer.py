"""The one pull consumer: keeps requests for messages open, as far as there is room for them.

A service's queue and a normal channel differ in who has room when, and in what a message is; how
they get messages is here. Sources: NATS ADR-13 (pull subscriptions), ADR-15 (acknowledgements).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from wsgateway.broker.bus import new_reply_subject
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.specs import NANO
from wsgateway.exceptions import BrokerClosed, BrokerError, BrokerMisconfigured, reason_of
from wsgateway.protocol.backoff import Backoff
from wsgateway.supervision import supervise

if TYPE_CHECKING:
    from wsgateway.broker.bus import Handler
    from wsgateway.broker.nats.connection import NatsConnection

__all__ = ["PullConsumer"]

GRACE = 2.0
"""Seconds after a request's end in which the server should have said so; then it is taken for
lost."""
DRAIN_WITHIN = 1.0
"""Seconds that messages on their way may take at the end; later ones are lost here, and come again
after the consumer's ``ack_wait``."""
SAID_EACH = 20
"""Of so many attempts to begin, the log mentions one."""
PATIENCE = 3
"""Attempts that may fail before it does, unless an operator must act."""


class PullConsumer:
    """Pulls what one durable consumer of a stream delivers.

    Args:
        connection: Use this in its loop.
        title: What it is, for the log.
        prepare: Makes the consumer, or finds it; returns stream and consumer joined by a dot.
            Called again whenever the consumer may be lost.
        room: Says how many messages may come now.
        on_message: Called with each message, in the read path.
        expires: Seconds that a request stays open.
        logger: Where it says what keeps it from pulling.
        log_fields: What it pulls for.
    """

    asked = 0
    """Messages that requests are open for."""

    def __init__(
        self,
        connection: NatsConnection,
        title: str,
        *,
        prepare: Callable[[], Awaitable[str]],
        room: Callable[[], int],
        on_message: Handler,
        expires: float,
        logger: logging.Logger,
        log_fields: Mapping[str, object],
    ) -> None:
        self._connection = connection
        self._title = title
        self._prepare = prepare
        self._room = room
        self._on_message = on_message
        self._expires = expires
        self._logger = logger
        self._log_fields = log_fields
        self._subject = ""  # where requests go
        # Of its own: what a pull brings carries the stream's subject, not the request's
        self._reply_subject = new_reply_subject()
        self._is_lost = False  # the consumer, or the connection
        self._changed = asyncio.Event()  # there may be room, or it is lost
        self._subscription = connection.subscribe(self._reply_subject, self._on_answer)
        self._hook = connection.on_lost(self._on_lost)
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to pull."""
        self._task = supervise(self._keep_pulling, "wsgateway-pull")

    async def close(self) -> None:
        """Stop pulling, once what is on its way has come. Idempotent."""
        self._hook.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._subscription.drain(DRAIN_WITHIN)

    def look(self) -> None:
        """Pull more if there is room now."""
        if self._wanted() > 0:  # each turn of the loop costs as much as a message
            self._changed.set()

    async def _keep_pulling(self) -> None:
        backoff, attempt = Backoff(0.1, 2.0, 2.0, jitter=0.5), 0
        while True:
            self._is_lost = False
            self.asked = 0
            try:
                self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{await self._prepare()}"
                attempt = 0
                await self._pull()
                await asyncio.sleep(backoff.delay(0))  # a server that refuses may do so for long
            except BrokerClosed:
                return
            except BrokerError as exc:
                self._complain(exc, attempt)
                await asyncio.sleep(backoff.delay(attempt))
                attempt += 1

    def _complain(self, exc: BrokerError, attempt: int) -> None:
        wrong = isinstance(exc, BrokerMisconfigured)
        if attempt % SAID_EACH == (0 if wrong else PATIENCE):
            level = logging.ERROR if wrong else logging.WARNING
            self._logger.log(
                level, "%s waits: %s", self._title, reason_of(exc), extra=self._log_fields
            )

    async def _pull(self) -> None:
        """Keep requests open until the consumer is lost."""
        deadline = 0.0
        while not self._is_lost:
            self._changed.clear()
            wanted = self._wanted()
            if wanted > 0:
                self._request(wanted)
                deadline = asyncio.get_running_loop().time() + self._expires + GRACE
            try:
                async with asyncio.timeout_at(deadline if self.asked else None):
                    await self._changed.wait()
            except TimeoutError:
                return  # the server forgot the requests: see to the consumer, then again

    def _wanted(self) -> int:
        """Return how many messages to ask for; a few only if nothing is asked for."""
        wanted = self._room() - self.asked
        return wanted if wanted >= self.asked else 0

    def _request(self, count: int) -> None:
        request = {"batch": count, "expires": int(self._expires * NANO)}
        self._connection.publish(
            self._subject, json.dumps(request).encode(), reply=self._reply_subject
        )
        self.asked += count

    def _on_lost(self) -> None:
        self._is_lost = True
        self._changed.set()

    def _on_answer(self, subject: bytes, reply: bytes, data: bytes, raw: bytes | None) -> None:
        status = None if reply else hdrs.status(raw)  # a message may begin with a status, too
        if status is None:
            if self.asked:  # otherwise of a request that was taken for lost
                self.asked -= 1
            self._on_message(subject, reply, data, raw)
            if not self.asked:
                self._changed.set()
        elif status == 408:  # a request has expired
            unused = hdrs.find_int(raw, b"Nats-Pending-Messages") or 0
            self.asked = max(0, self.asked - unused)
            self._changed.set()
        elif status != 100:  # a heartbeat
            text = "the server ended a pull of %s with status %s"
            self._logger.debug(text, self._title, status, extra=self._log_fields)
            self._on_lost()
