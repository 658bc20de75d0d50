"""From a group to a normal channel that is a member of it."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from typing import TYPE_CHECKING

from wsgateway import counters
from wsgateway.broker.bus import Closable
from wsgateway.broker.messages import Receipt, Stored
from wsgateway.exceptions import BrokerError, MalformedMessage, QueueFull, reason_of
from wsgateway.layer import blobs, wire
from wsgateway.protocol.subjects import Address, encode_token
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection
    from wsgateway.layer.core import NatsChannelLayer

__all__ = ["Forward"]

logger = logging.getLogger("wsgateway.layer")


class Forward:
    """Stores a group's messages in a normal channel; once, however many processes do this.

    The processes share the group's messages, except the parts of a split one: each process
    joins them, and all store the result under the same id.

    Args:
        layer: Whose.
        connection: Where.
        group: The group's name.
        inbox: Where its messages are stored; None if they are not.
        channel: A normal channel.
    """

    def __init__(
        self,
        layer: NatsChannelLayer,
        connection: Connection,
        group: str,
        inbox: Address | None,
        channel: str,
    ) -> None:
        self._layer = layer
        self._connection = connection
        self._group = group
        self._channel = channel
        self._log_fields = {"group": group, "channel": channel}
        self._store = connection.broker.channels
        self._joiner = wire.Joiner()
        self._waiting: deque[tuple[bytes, bytes | None]] = deque()  # envelope, identity
        self._storing: asyncio.Task[None] | None = None  # while there is something to wait for
        self._subscriptions: list[Closable] = []
        queue = encode_token(channel)
        if inbox is not None:
            self._subscriptions.append(
                connection.broker.log(inbox).watch(inbox, self._on_stored, queue)
            )
        else:
            subject, subscribe = connection.subjects.group(group), connection.bus.subscribe
            self._subscriptions += [
                subscribe(subject, self._on_message, queue),
                subscribe(subject, self._on_part),
            ]

    def close(self) -> None:
        """Stop taking messages. Those that it has taken are still stored."""
        for subscription in self._subscriptions:
            subscription.close()

    def _on_stored(self, stored: Stored) -> None:
        envelope = self._layer.envelopes.encode_stored(stored)
        if envelope is not None:
            self._put_whole(envelope)

    def _on_message(self, _s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
        if not (wire.is_enveloped(data) and wire.is_part(data)):
            self._put_whole(wire.framed(data))

    def _put_whole(self, envelope: bytes) -> None:
        is_too_big = len(envelope) > self._store.max_size
        self._put(envelope, uuid.uuid4().bytes if is_too_big else None)

    def _on_part(self, _s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
        if not (wire.is_enveloped(data) and wire.is_part(data)):
            return
        try:
            whole = self._joiner.add(data)
        except MalformedMessage as exc:
            logger.warning("%s", reason_of(exc), extra=self._log_fields)
            return
        if whole is not None:
            self._put(whole, wire.identity(data))

    def _put(self, envelope: bytes, identity: bytes | None) -> None:
        if self._storing is None and identity is None:
            self._offer(envelope, None)
        elif len(self._waiting) >= self._layer.get_capacity(self._channel):
            self._missed(QueueFull(self._channel))
        else:
            self._waiting.append((envelope, identity))
            if self._storing is None:
                self._storing = start(self._store_waiting(), "wsgateway-forward")

    async def _store_waiting(self) -> None:
        """Store what waits, in its order."""
        try:
            while self._waiting:
                envelope, identity = self._waiting.popleft()
                try:
                    if identity is not None:
                        envelope = await blobs.store(
                            self._connection.broker.blobs,
                            envelope,
                            self._layer.expiry,
                            identity,
                        )
                    self._offer(envelope, identity)
                except Exception as exc:  # the others must go on
                    self._missed(exc)
        finally:
            self._storing = None

    def _offer(self, envelope: bytes, identity: bytes | None) -> None:
        msg_id = None if identity is None else identity.hex()
        try:
            result = self._store.offer(self._channel, envelope, self._layer.expiry, msg_id)
        except BrokerError as exc:
            self._missed(exc)
        else:
            result.add_done_callback(self._on_result)

    def _on_result(self, result: asyncio.Future[Receipt]) -> None:
        error = None if result.cancelled() else result.exception()
        if error is not None:
            self._missed(error)

    def _missed(self, error: BaseException) -> None:
        if isinstance(error, QueueFull):
            counters.layer.dropped_full += 1
            text = "%s of %s channels over capacity in group %s"
            logger.info(text, 1, 1, self._group, extra=self._log_fields)
        else:
            counters.layer.dropped_unsent += 1
            text = "a message of group %s did not reach channel %s: %s"
            reason = reason_of(error)
            logger.info(text, self._group, self._channel, reason, extra=self._log_fields)
