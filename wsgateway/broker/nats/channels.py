"""Normal channels in a work-queue stream: one subject and one durable consumer a channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from wsgateway.broker.channels import ACK_WAIT, ChannelConsumer, ChannelStore
from wsgateway.broker.nats.jetstream import NOT_FOUND, ApiError
from wsgateway.broker.nats.pull_consumer import PullConsumer
from wsgateway.broker.nats.specs import NANO, channel_stream
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError, BrokerUnavailable, QueueFull, reason_of
from wsgateway.protocol.subjects import encode_token

if TYPE_CHECKING:
    from wsgateway.broker.messages import Receipt
    from wsgateway.broker.nats.broker import NatsBroker

__all__ = ["NatsChannelStore"]

logger = logging.getLogger("wsgateway.layer")

HEADERS = 256
"""Bytes of a stored message that are left for its headers."""
PULL_EXPIRES = 2.0
"""Seconds that a request for messages stays open: what comes when nobody reads any more waits."""
INACTIVE = 86400
"""Seconds after which the server forgets a channel's consumer."""
COUNT_VALID = 1.0
"""Seconds that a count of a channel's messages is used."""
REMEMBERED = 4096
"""Acknowledged messages that are remembered, to see a second delivery."""


class NatsChannelStore(ChannelStore):
    """See `ChannelStore`. The stream itself refuses what exceeds the largest capacity that any
    process asked for; smaller ones are counted before storing, as channels_redis does.

    Args:
        broker: The connection.
    """

    limit = 0

    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker
        self._subjects = broker.subjects
        self._stream = broker.subjects.stream("chan")
        self._ensuring = asyncio.Lock()
        self._counts: dict[str, tuple[float, int]] = {}  # channel -> until when, how many

    async def ensure(self, capacity: int) -> None:
        if self.limit >= capacity:
            return
        async with self._ensuring:
            if self.limit < capacity:
                spec = channel_stream(self._subjects, settings, capacity)
                info = await self._broker.streams.patient.ensure(spec)
                self.limit = int(info["config"]["max_msgs_per_subject"])

    def invalidate(self) -> None:
        """Have the next `ensure` look: the stream may have been deleted."""
        self.limit = 0

    # -- store ---------------------------------------------------------------------------

    async def put(self, channel: str, data: bytes, ttl: float, capacity: int) -> None:
        if capacity < self.limit:
            await self._count_one_more(channel, capacity)
        subject = self._subjects.channel(channel)
        try:
            await self._broker.jetstream.publish(subject, data, _headers(ttl))
        except BrokerUnavailable:
            self.invalidate()
            raise

    def offer(
        self, channel: str, data: bytes, ttl: float, msg_id: str | None = None
    ) -> asyncio.Future[Receipt]:
        headers = _headers(ttl)
        if msg_id is not None:  # the server compares ids across the whole stream
            headers["Nats-Msg-Id"] = f"{msg_id}.{encode_token(channel)}"
        return self._broker.jetstream.offer(self._subjects.channel(channel), data, headers)

    @property
    def max_size(self) -> int:
        return self._broker.connection.max_payload - HEADERS

    # -- count ---------------------------------------------------------------------------

    async def _count_one_more(self, channel: str, capacity: int) -> None:
        until, count = self._counts.get(channel, (0.0, 0))
        now = time.monotonic()
        if count >= capacity or now >= until:
            count, until = await self.count(channel), now + COUNT_VALID
        if count >= capacity:
            self._counts.pop(channel, None)
            raise QueueFull(f"channel {channel!r} already holds {count} messages")
        self._counts[channel] = (until, count + 1)

    async def count(self, channel: str) -> int:
        subject = self._subjects.channel(channel)
        info = await self._broker.jetstream.patient.api(
            f"STREAM.INFO.{self._stream}", {"subjects_filter": subject}
        )
        return int((info["state"].get("subjects") or {}).get(subject, 0))

    async def purge(self) -> None:
        if not self._broker.connection.server.has_jetstream:
            return
        self._counts.clear()
        request = {"filter": f"{self._subjects.prefix}.chan.*"}
        try:
            await self._broker.jetstream.api(f"STREAM.PURGE.{self._stream}", request)
        except ApiError as exc:
            if exc.err_code != NOT_FOUND:
                raise

    # -- take ----------------------------------------------------------------------------

    def take(
        self,
        channel: str,
        capacity: int,
        room: Callable[[], int],
        on_message: Callable[[bytes, str], None],
    ) -> ChannelConsumer:
        async def prepare() -> str:
            return await self._prepare(channel, capacity)

        consumer = _Consumer(self._broker, channel, prepare, room, on_message)
        consumer.open()
        return consumer

    async def _prepare(self, channel: str, capacity: int) -> str:
        """Make a channel's consumer, and its stream if that is missing."""
        await self._broker.connection.ready()
        await self.ensure(capacity)
        subject, name = self._subjects.channel(channel), encode_token(channel)
        config = {
            "durable_name": name,
            "name": name,
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * NANO),
            "filter_subject": subject,
            "max_ack_pending": 10_000,
            "inactive_threshold": INACTIVE * NANO,
        }
        try:
            await self._broker.jetstream.api(
                f"CONSUMER.CREATE.{self._stream}.{name}.{subject}",
                {"stream_name": self._stream, "config": config},
            )
        except ApiError:
            self.invalidate()
            raise
        return f"{self._stream}.{name}"


class _Consumer(PullConsumer, ChannelConsumer):
    """See `ChannelConsumer`."""

    def __init__(
        self,
        broker: NatsBroker,
        channel: str,
        prepare: Callable[[], Awaitable[str]],
        room: Callable[[], int],
        on_message: Callable[[bytes, str], None],
    ) -> None:
        super().__init__(
            broker.connection,
            f"channel {channel}",
            prepare=prepare,
            room=room,
            on_message=self._on_delivery,
            expires=PULL_EXPIRES,
            logger=logger,
            log_fields={"channel": channel},
        )
        self._channel = channel
        self._publish = broker.connection.publish
        self._hand_over = on_message
        stream, name = broker.subjects.stream("chan"), encode_token(channel)
        self._first = f"$JS.ACK.{stream}.{name}.1."  # how the receipt of a first delivery begins
        self._acked: OrderedDict[str, None] = OrderedDict()  # messages

    def ack(self, receipt: str) -> None:
        self._acked[_message(receipt)] = None
        if len(self._acked) > REMEMBERED:
            self._acked.popitem(last=False)
        try:
            self._publish(receipt, b"+ACK")
        except BrokerError as exc:  # it comes again, and is known then
            logger.debug(
                "did not send an acknowledgement: %s",
                reason_of(exc),
                extra={"channel": self._channel},
            )

    def give_back(self, receipt: str) -> None:
        with contextlib.suppress(BrokerError):  # it comes again anyway
            self._publish(receipt, b"-NAK")

    def _on_delivery(self, _s: bytes, reply: bytes, data: bytes, _raw: bytes | None) -> None:
        receipt = reply.decode()
        if receipt.startswith(self._first) or _message(receipt) not in self._acked:
            self._hand_over(data, receipt)
        else:
            self.ack(receipt)  # the last one was lost


def _headers(ttl: float) -> dict[str, str]:
    return {"Nats-TTL": f"{max(1, math.ceil(ttl))}s"}


def _message(receipt: str) -> str:
    """Return what names a message in an acknowledgement's subject, of the old or new layout.

    That is its sequence and its time: a stream that is recreated begins with the same sequences.
    """
    tokens = receipt.split(".")
    sequence = 5 if len(tokens) == 9 else 7
    return f"{tokens[sequence]}.{tokens[sequence + 2]}"
