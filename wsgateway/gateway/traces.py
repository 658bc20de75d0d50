"""The spans of what a client sends, if the project traces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from wsgateway.broker.messages import REQUEST_HEADER, Receipt, Stored
from wsgateway.conf import settings
from wsgateway.handshake import header
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Topic
from wsgateway.tracing import TRACEPARENT, TRACESTATE, Destination, Tracer, find_tracer, finish

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from wsgateway.gateway.session import Session
    from wsgateway.gateway.subscription import Subscription

__all__ = ["Put", "deliver", "trace"]

Put = Callable[[Frame, str, Mapping[str, str], Topic | None], Awaitable["asyncio.Future[Receipt]"]]
"""As `PublishQueue.put`."""


def trace(session: Session) -> None:
    """Make a span of everything that the client sends, if a tracer provider is set by now."""
    tracer = find_tracer()
    if tracer is not None:
        session.publisher.put = _Traces(tracer, session).put
        session.publisher.is_traced = True


class _Traces:
    """Traces one client's messages from the gateway on until they are stored.

    Args:
        tracer: Makes the spans.
        session: Whose messages.
    """

    __slots__ = ("_attributes", "_broker", "_destination", "_inbox", "_links", "_put", "_tracer")

    def __init__(self, tracer: Tracer, session: Session) -> None:
        self._tracer = tracer
        self._put = session.publisher.put
        self._broker = session.hub.broker
        self._inbox = session.inbox
        self._destination: Destination | None = None  # once the broker has been ready
        self._attributes = {"wsgateway.connection": session.connection}
        headers = {
            name: b",".join(values).decode("latin-1")
            for name in (TRACEPARENT, TRACESTATE)
            if (values := header(session.scope, name.encode()))
        }
        self._links = tracer.links_to_handshake(headers)

    async def put(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str], topic: Topic | None
    ) -> asyncio.Future[Receipt]:
        """Do what `PublishQueue.put` does, within a span that ends with the receipt."""
        attributes = {**self._attributes, "messaging.message.id": msg_id}
        if REQUEST_HEADER in headers:
            attributes["messaging.message.conversation_id"] = headers[REQUEST_HEADER]
        if topic is not None:
            destination = self._broker.destination("send", self._inbox, topic.service)
        elif self._destination is None:
            destination = self._destination = self._broker.destination("send", self._inbox)
        else:
            destination = self._destination
        span, headers = self._tracer.begin_client_message(
            destination._replace(server=self._broker.server),
            len(frame.payload),
            headers,
            attributes,
            links=self._links,
            continues=settings.CONTINUE_TRACES,
        )
        try:
            receipt = await self._put(frame, msg_id, headers, topic)
        except BaseException as exc:
            finish(span, exc)
            raise
        receipt.add_done_callback(partial(_on_receipt, span))
        return receipt


async def deliver(
    session: Session, subscription: Subscription, message: Stored, frame: str | bytes
) -> bool:
    """Do what `Socket.write` does with a message that has a trace, within a span."""
    tracer = find_tracer()
    if tracer is None or message.trace is None:
        return await session.socket.write(frame)
    attributes = {"wsgateway.connection": session.connection, "wsgateway.offset": message.offset}
    address = subscription.address
    kind = "topic" if isinstance(address, Topic) else "recv"
    destination = session.hub.broker.destination(kind, address)
    with tracer.delivering(destination, len(message.payload), message.trace, attributes):
        return await session.socket.write(frame)


def _on_receipt(span: Span, receipt: asyncio.Future[Receipt]) -> None:
    finish(span, asyncio.CancelledError() if receipt.cancelled() else receipt.exception())
