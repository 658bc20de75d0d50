"""The span of a handler, if the project traces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from wsgateway.broker.messages import CONNECTION_HEADER, REQUEST_HEADER
from wsgateway.services.errors import Reject
from wsgateway.tracing import Tracer, finish

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.broker.work import Job

__all__ = ["trace_handler"]

ATTRIBUTES = {
    "Nats-Msg-Id": "messaging.message.id",
    REQUEST_HEADER: "messaging.message.conversation_id",
    CONNECTION_HEADER: "wsgateway.connection",
}
"""Attributes of a span that come from the message's headers."""


async def trace_handler(
    tracer: Tracer, broker: Broker, job: Job, call: Callable[[], Awaitable[BaseException | None]]
) -> BaseException | None:
    """Call a handler within a span; return what *call* returns: what the handler raised.

    A rejection is an answer to the client, not a failure of the handler.
    """
    attributes: dict[str, str | int] = {
        "messaging.consumer.group.name": broker.subjects.consumer(job.service),
        "wsgateway.attempt": job.attempt,
    }
    for name, attribute in ATTRIBUTES.items():
        if name in job.headers:
            attributes[attribute] = job.headers[name]
    destination = broker.destination("send", job.inbox, job.service)
    with tracer.processing(destination, len(job.payload), attributes) as span:
        try:
            error = await call()
        except BaseException as exc:
            finish(span, exc)
            raise
        if isinstance(error, Reject):
            span.set_attribute("wsgateway.rejected", error.code)
            finish(span)
        else:
            finish(span, error)
        return error
