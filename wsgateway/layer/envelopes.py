"""From messages to envelopes and back: serialized, bounded, compressed, expiring."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import time as clock
from typing import TYPE_CHECKING, Any

from channels.exceptions import MessageTooLarge

from wsgateway import counters
from wsgateway.broker.messages import Stored
from wsgateway.exceptions import BrokerUnavailable, MalformedMessage, reason_of
from wsgateway.layer import durable, wire
from wsgateway.layer.serializers import BaseMessageSerializer, Serializer
from wsgateway.layer.wire import HEAD, head
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.frames import EVENT

if TYPE_CHECKING:
    from wsgateway.layer.mailbox import Mailbox
    from wsgateway.layer.subscription import DurableItem

__all__ = ["Envelopes"]

logger = logging.getLogger("wsgateway.layer")

CLOCK_TOLERANCE = 0.25
"""Seconds that hosts' clocks may differ before a message expires too early; channels_redis, which
counts whole seconds, is not stricter. Not for an expiry below a second, which is a test's."""
_backoff = Backoff(0.05, 2.0, 1.0, jitter=0.5)


class Envelopes:
    """How one layer writes messages, and reads them.

    Args:
        serializer: Makes bytes of messages.
        expiry: Seconds from sending after which a message is not read any more.
        max_message_size: Bytes of a serialized message above which it is refused.
        fetch: Returns the envelope that a claim stands for; None if it is gone.
    """

    def __init__(
        self,
        serializer: Serializer,
        expiry: float,
        max_message_size: int,
        fetch: Callable[[bytes], Awaitable[bytes | None]],
    ) -> None:
        self.serialize = serializer.serialize
        self.deserialize = serializer.deserialize
        if isinstance(serializer, BaseMessageSerializer) and serializer.is_plain:
            self.serialize = serializer.as_bytes
            self.deserialize = serializer.from_bytes
        self._is_strict = isinstance(serializer, BaseMessageSerializer) and serializer.is_strict
        self.expiry = expiry
        self.max_message_size = max_message_size
        self._fetch = fetch

    @property
    def expiry(self) -> float:
        """Seconds from sending after which a message is not read any more."""
        return self._expiry

    @expiry.setter
    def expiry(self, expiry: float) -> None:
        self._expiry = expiry
        self._lifetime = expiry + (CLOCK_TOLERANCE if expiry >= 1 else 0.0)

    # -- writing -------------------------------------------------------------------------

    def pack(self, message: dict[str, Any]) -> bytes:
        """Return *message* as bytes that every process of the layer can read.

        Raises:
            MessageTooLarge: It exceeds the layer's limit.
            TypeError: It holds what the serializer cannot carry.
            ValueError: The same, or it could be written, but not be read again.
            OverflowError: An int is too large.
        """
        content = self.serialize(message)
        if not self._is_strict:
            self._require_readable(content)
        if len(content) > self.max_message_size:
            raise MessageTooLarge(
                f"message of {len(content)} bytes exceeds max_message_size "
                f"({self.max_message_size} bytes)"
            )
        return content

    def _require_readable(self, content: bytes) -> None:
        try:
            self.deserialize(content)
        except Exception as exc:  # whatever the format raises
            raise ValueError(
                "the layer's serializer cannot read what it made of this message; "
                f"deserialize raises {type(exc).__name__}"
            ) from exc

    def encode(self, name: bytes, message: dict[str, Any]) -> bytes:
        """Return the envelope of *message*, sent now to the channel *name* (b"" for a group)."""
        content = self.pack(message)
        data = wire.pack(clock(), name, content)
        return wire.compress(data) if len(data) > wire.COMPRESS_OVER else data

    # -- reading -------------------------------------------------------------------------

    def is_expired(self, envelope: bytes) -> bool:
        """Say whether a message is too old to be given out."""
        return wire.sent_at(envelope) < clock() - self._lifetime

    def decode(self, envelope: bytes) -> dict[str, Any] | None:
        """Return the message in *envelope*; None if it is expired or damaged."""
        _, flags, sent_at, size = head(envelope)
        if sent_at < clock() - self._lifetime:
            counters.layer.dropped_expired += 1
            return None
        try:
            if not flags:
                message: dict[str, Any] = self.deserialize(envelope[HEAD + size :])
                return message
            content = wire.body(envelope, self.max_message_size)
            if flags & wire.FRAME:
                return durable.frame_event(content, None)
            message = self.deserialize(content)
        except Exception as exc:  # whatever the format raises for foreign bytes
            counters.layer.dropped_unreadable += 1
            text = "skipped a channel message that cannot be read: %s"
            logger.warning(text, _what_failed(exc), extra={"channel": _channel(envelope)})
            return None
        return message

    def event_of(self, stored: Stored) -> dict[str, Any] | None:
        """Return the event that a durable group's message means; None if it is damaged."""
        try:
            return durable.event_of(stored, self.deserialize, self.max_message_size)
        except Exception as exc:  # whatever the format raises for foreign bytes
            counters.layer.dropped_unreadable += 1
            text = "skipped a stored message that cannot be read: %s"
            logger.warning(text, _what_failed(exc), extra={"offset": stored.offset})
            return None

    def encode_stored(self, stored: Stored) -> bytes | None:
        """Return the envelope, sent now, of a durable group's message; None if it is damaged."""
        claim = durable.claim_of(stored)
        if claim is not None:
            return wire.stamp(claim, clock())
        event = self.event_of(stored)
        return None if event is None else self.encode(b"", event)

    async def decode_durable(
        self, mailbox: Mailbox[Any], item: DurableItem
    ) -> dict[str, Any] | None:
        """Return the event in *item*, which was taken from *mailbox*; None if there is none."""
        claim = durable.claim_of(item.stored)
        if claim is None:
            return self.event_of(item.take())
        data = await self.redeem(mailbox, item, claim)
        stored = item.take()
        return None if data is None else self.event_of(Stored(stored.offset, None, data, EVENT))

    async def redeem(self, mailbox: Mailbox[Any], item: Any, claim: bytes) -> bytes | None:
        """Return the envelope that *claim* stands for, None if it is gone or expired.

        Args:
            mailbox: What *item* was taken from; gets it back if this is cancelled.
            item: What holds the claim.
            claim: An envelope.
        """
        sent_at = wire.sent_at(claim)
        attempt = 0
        try:
            while True:
                if sent_at and self.is_expired(claim):
                    counters.layer.dropped_expired += 1
                    return None
                try:
                    found = await self._fetch(claim)
                except BrokerUnavailable as exc:
                    text = "cannot fetch a large message yet: %s"
                    logger.debug(text, reason_of(exc), extra={"channel": _channel(claim)})
                    await asyncio.sleep(_backoff.delay(attempt))
                    attempt += 1
                    continue
                except MalformedMessage as exc:
                    counters.layer.dropped_unreadable += 1
                    text = "skipped a channel message that cannot be read: %s"
                    logger.warning(text, reason_of(exc), extra={"channel": _channel(claim)})
                    return None
                if found is None:
                    counters.layer.dropped_unreadable += 1
                    text = "skipped a large channel message because its parts are gone"
                    logger.warning(text, extra={"channel": _channel(claim)})
                    return None
                if wire.sent_at(found) != sent_at:  # it came by way of a durable group
                    return wire.stamp(found, sent_at)
                return found
        except BaseException:
            mailbox.queue.appendleft(item)
            mailbox.pass_on()
            raise


def _channel(envelope: bytes) -> str:
    """Return the channel that an envelope is for; empty for a group's message."""
    return wire.name(envelope).decode("utf-8", "replace")


def _what_failed(error: Exception) -> str:
    """Return what the log says about a message that cannot be read, without the message.

    The text of a format's own exception may quote it, and so do the arguments of several.
    """
    if isinstance(error, MalformedMessage):
        return reason_of(error)
    return type(error).__name__
