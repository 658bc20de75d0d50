"""The message that a handler gets."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.utils.functional import SimpleLazyObject

from wsgateway.broker.messages import (
    CLIENT_ID_HEADER,
    CONNECTION_HEADER,
    DEVICE_HEADER,
    ERROR_HEADER,
    REPLY_TO_HEADER,
    REQUEST_HEADER,
    RESOLVER_HEADER,
    Receipt,
)
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerClosed, BrokerUnavailable, NameRefused
from wsgateway.outgoing import NOTHING, frame_of
from wsgateway.protocol import strict_json
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import decode_token
from wsgateway.protocol.v1 import valid_id
from wsgateway.services.errors import Reject
from wsgateway.services.failure import clip, code_word
from wsgateway.services.users import find_user

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.broker.work import Job

__all__ = ["Message", "SyncMessage"]

REPLY_TTL = 60.0
"""Seconds for which an answer to a request is kept for the client."""
MAX_REASON = 4_000
"""Characters of a rejection's reason that the client gets."""
Binary = bytes


class Message:
    """What a client sent.

    Attributes:
        service: The service whose handler this is.
        topic: The topic of that service that it was sent to; None if it was not sent to one.
        sender: Who sent it, and where replies go: the inbox's ``service`` and ``user``. In the
            handler of topics, that is another service than `service`.
        user_name: The sender's name.
        attempt: Which try this is; the first is 1.
        deliveries: How often it was delivered to a worker, this time included. If it is above 1,
            a handler may have started in a worker that died.
        offset: Its sequence in the stream.
        id: A unique id; offsets start from 1 again if the stream is recreated.
        headers: Its NATS headers, read-only.
    """

    def __init__(self, job: Job, broker: Broker) -> None:
        self._job = job
        self._broker = broker
        self._replies = 0
        self._published = 0
        self.service = job.service
        self.topic = job.topic
        self.sender = job.inbox
        self.user_name = job.inbox.user
        self.attempt = job.attempt
        self.deliveries = job.deliveries
        self.offset = job.sequence
        self.id = job.id
        self.headers: Mapping[str, str] = MappingProxyType(job.headers)
        self.frame: Frame = job.frame

    def __repr__(self) -> str:
        to = "" if self.topic is None else f" to {self.topic}"
        sender = ".".join(self.sender)
        return f"<Message {self.offset} of {sender}{to}, try {self.attempt}>"

    @property
    def time(self) -> dt.datetime:
        """When it was stored."""
        return dt.datetime.fromtimestamp(self._job.sent, dt.UTC)

    @property
    def text(self) -> str:
        """The text.

        Raises:
            Reject: It is a binary frame.
        """
        if not self.frame.text:
            raise Reject("send a text frame", code="bad_request")
        return self.frame.payload.decode()

    @property
    def bytes(self) -> Binary:
        """The payload, of either kind of frame."""
        return self.frame.payload

    def json(self) -> Any:
        """Return the payload parsed as JSON.

        Raises:
            Reject: It is not JSON, or holds NaN, a number beyond a double, a name twice, or half a
                surrogate pair; the client is told.
        """
        try:
            return strict_json.loads(self.frame.payload)
        except (ValueError, RecursionError) as exc:
            raise Reject("the payload is not JSON", code="bad_request") from exc

    @property
    def connection(self) -> str | None:
        """Names the socket that sent it; None if no gateway did."""
        return self.headers.get(CONNECTION_HEADER)

    @property
    def device(self) -> str | None:
        """The user's device that sent it; None if no gateway did."""
        token = self.headers.get(DEVICE_HEADER)
        try:
            return None if token is None else decode_token(token)
        except NameRefused:
            return None

    @property
    def client_id(self) -> str | None:
        """The id that a ``wsgateway.v1`` client gave it; None for a raw socket."""
        id = self.headers.get(CLIENT_ID_HEADER)
        return id if valid_id(id) else None

    @property
    def wants_reply(self) -> bool:
        """Whether the client waits for a reply."""
        return valid_id(self.headers.get(REQUEST_HEADER))

    @property
    def user(self) -> Any:
        """The Django user who sent it, loaded when it is used; from synchronous code.

        Raises:
            ObjectDoesNotExist: When used: the sender is not a Django user.
        """
        return SimpleLazyObject(self._find_user)

    async def auser(self) -> Any:
        """Return the Django user who sent it.

        Raises:
            ObjectDoesNotExist: The sender is not a Django user.
        """
        return await sync_to_async(self._find_user)()

    def _find_user(self) -> Any:
        return find_user(self.user_name, self.headers.get(RESOLVER_HEADER) or None)

    async def reply(
        self,
        *,
        text: str | None = None,
        bytes: Binary | None = None,
        json: Any = NOTHING,
        ttl: float | None = None,
    ) -> Receipt:
        """Send something to the user; the answer, if the client waits for one.

        It is stored in the user's inbox, so it still arrives if the client reconnects. A handler
        that is retried within ``WSGATEWAY_DUPLICATE_WINDOW`` does not send it twice.

        Args:
            text: A text frame.
            bytes: A binary frame.
            json: Becomes a text frame.
            ttl: Seconds; None: a minute for an answer, else as long as messages are kept.
        """
        headers = {}
        if self.wants_reply:
            headers[REPLY_TO_HEADER] = self.headers[REQUEST_HEADER]
            ttl = REPLY_TTL if ttl is None else ttl
        frame = frame_of(text, bytes, json)
        self._replies += 1
        return await self._publish(frame, headers, ttl, f"reply.{self.id}.{self._replies}")

    async def publish(
        self,
        *,
        text: str | None = None,
        bytes: Binary | None = None,
        json: Any = NOTHING,
        ttl: float | None = None,
    ) -> Receipt:
        """Publish to the topic that this message was sent to: everyone who reads it gets it.

        A handler that is retried within ``WSGATEWAY_DUPLICATE_WINDOW`` does not publish twice,
        unless the topic is ephemeral; then the receipt's offset is 0.

        Args:
            text: A text frame.
            bytes: A binary frame.
            json: Becomes a text frame.
            ttl: Seconds; None: as long as the topic keeps messages.

        Raises:
            RuntimeError: This message was not sent to a topic.
        """
        if self.topic is None:
            raise RuntimeError(
                "the message was not sent to a topic, so publish() has nowhere to publish; "
                "use reply(), or wsgateway.asend()"
            )
        frame = frame_of(text, bytes, json)
        self._published += 1
        return await self._broker.publish(
            self.topic,
            frame.payload,
            kind=frame.kind,
            msg_id=f"publish.{self.id}.{self._published}",
            ttl=ttl,
        )

    async def reject(self, code: str, reason: str) -> None:
        """Tell the client that the message was rejected, if it can be told."""
        if self.client_id is not None:
            headers = {REPLY_TO_HEADER: self.client_id, ERROR_HEADER: code_word(code)}
            frame = Frame.of(clip(reason, MAX_REASON))
            await self._publish(frame, headers, REPLY_TTL, f"refuse.{self.id}")

    refuse = reject  # its former name; remove it after the next release

    async def _publish(
        self, frame: Frame, headers: dict[str, str], ttl: float | None, msg_id: str
    ) -> Receipt:
        return await self._broker.publish(
            self._job.inbox,
            frame.payload,
            kind=frame.kind,
            msg_id=msg_id,
            ttl=ttl,
            headers=headers,
            reserved=True,
        )


class SyncMessage(Message):
    """What a synchronous handler gets: `reply` and `publish` return when it is stored."""

    def __init__(self, job: Job, broker: Broker, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(job, broker)
        self._loop = loop

    def reply(self, **options: Any) -> Receipt:  # type: ignore[override]
        """See `Message.reply`."""
        return self._wait(super().reply(**options), "reply")

    def publish(self, **options: Any) -> Receipt:  # type: ignore[override]
        """See `Message.publish`."""
        return self._wait(super().publish(**options), "message")

    def _wait(self, storing: Coroutine[Any, Any, Receipt], what: str) -> Receipt:
        """Run *storing* in the worker's loop; return its result."""
        limit = settings.PUBLISH_TIMEOUT + settings.BROKER_TIMEOUT  # the loop may be blocked
        try:
            future = asyncio.run_coroutine_threadsafe(storing, self._loop)
        except RuntimeError as exc:
            storing.close()
            raise BrokerClosed("the worker has ended; the message comes again") from exc
        try:
            return future.result(limit)
        except TimeoutError as exc:
            future.cancel()
            raise BrokerUnavailable(f"the {what} was not stored within {limit:g} s") from exc
