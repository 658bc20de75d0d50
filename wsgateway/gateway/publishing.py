"""What one socket's client sends, on its way to the broker and its answer on the way back."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from wsgateway import declared
from wsgateway.broker.messages import (
    CLIENT_ID_HEADER,
    CONNECTION_HEADER,
    DEVICE_HEADER,
    REQUEST_HEADER,
    RESOLVER_HEADER,
    Receipt,
)
from wsgateway.conf import settings
from wsgateway.exceptions import WsGatewayError, reason_of
from wsgateway.gateway.publish_queue import PublishQueue
from wsgateway.protocol.endpoint import Answer, Publish
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Topic, encode_token

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session
    from wsgateway.gateway.traces import Put

__all__ = ["Publisher"]

logger = logging.getLogger("wsgateway")


class Publisher:
    """Publishes what a session's client sends, and tells the client what came of it.

    Args:
        session: Whose client.
    """

    __slots__ = ("_headers", "_queue", "_sender", "_session", "is_traced", "put")

    def __init__(self, session: Session) -> None:
        self._session = session
        identity = session.identity
        self._headers = {  # of what the client sends
            CONNECTION_HEADER: session.connection,
            DEVICE_HEADER: encode_token(identity.device),
            **({RESOLVER_HEADER: identity.resolver} if identity.resolver else {}),
        }
        # The stream compares ids of all users, so theirs are told apart here.
        self._sender = f"{encode_token(identity.service)}.{encode_token(identity.user)}"
        self._queue = PublishQueue(
            self._publish_once,
            settings.SEND_WINDOW,
            settings.SEND_WINDOW_BYTES,
            self._patience,
            strict=not session.endpoint.acknowledges,
        )
        self.put: Put = self._queue.put
        """Takes what is to be published; `wsgateway.gateway.traces.trace` replaces it."""
        self.is_traced = False
        """Whether it was replaced."""

    async def publish(self, message: Publish) -> None:
        """Publish a frame. The broker's answer is awaited elsewhere, so frames are pipelined."""
        id, headers = message.id, self._headers
        if id is None:
            msg_id = uuid.uuid4().hex
        else:
            msg_id = f"{self._sender}:{id}"
            headers = {**headers, CLIENT_ID_HEADER: id}
            if message.request:
                headers[REQUEST_HEADER] = id
            if message.trace is not None and (self.is_traced or settings.CONTINUE_TRACES):
                headers |= message.trace
        receipt = await self.put(message.frame, msg_id, headers, message.topic)
        receipt.add_done_callback(partial(self._on_receipt, id))

    def give_up(self) -> None:
        """Forget what is not stored, and take no more. Idempotent."""
        self._queue.give_up()

    def _publish_once(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str], topic: Topic | None
    ) -> asyncio.Future[Receipt]:
        broker, inbox = self._session.hub.broker, self._session.inbox
        if topic is None:
            return broker.offer(inbox, frame, msg_id, headers)
        direct = declared.topics[topic.service].direct  # it is declared, or nobody could subscribe
        return broker.offer_topic(topic, inbox, frame, msg_id, headers, direct=direct)

    def _patience(self) -> float:
        """Return how long a client's frame may wait: an election passes, an outage may not."""
        connected = self._session.hub.broker.connected
        return settings.PUBLISH_TIMEOUT if connected else settings.BROKER_TIMEOUT

    def _on_receipt(self, id: str | None, receipt: asyncio.Future[Receipt]) -> None:
        if receipt.cancelled():
            return
        session = self._session
        error, where = receipt.exception(), session.socket.transport.where
        action = session.endpoint.published(id, error)
        if error is not None and not isinstance(error, WsGatewayError):
            text = "could not store a message of %s"
            logger.error(text, where, exc_info=error, extra=session.log_fields)
        elif error is not None and isinstance(action, Answer):
            text = "refused a message of %s: %s"
            logger.info(text, where, reason_of(error), extra=session.log_fields)
        session.do(action)
