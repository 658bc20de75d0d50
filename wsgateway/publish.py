"""Publishing: `send` to a user, `send_topic` to a topic, `send_many`, `send_on_commit`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from functools import partial
from typing import Any

from django.db import transaction

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.messages import Receipt
from wsgateway.exceptions import PartlySent, WsGatewayError
from wsgateway.outgoing import NOTHING, Binary, Outgoing, OutgoingTopic
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Address

__all__ = [
    "Receipt",
    "asend",
    "asend_many",
    "asend_topic",
    "send",
    "send_many",
    "send_on_commit",
    "send_topic",
    "send_topic_on_commit",
]

logger = logging.getLogger("wsgateway")

CHUNK, CHUNK_BYTES = 1024, 4 * 1024 * 1024
"""Messages, and bytes of them, that `send_many` reads before it waits for the broker."""
IN_FLIGHT = 256
"""Messages of one `send_many` that wait for the broker at once."""


AnyOutgoing = Outgoing | OutgoingTopic


def _storing(message: AnyOutgoing) -> Callable[[Broker], Awaitable[Receipt]]:
    """Check *message* here, in the caller's thread; return what stores it, to run anywhere."""
    address, frame = message.prepare()
    return partial(_store, address, frame, message)


async def _store(address: Address, frame: Frame, message: AnyOutgoing, broker: Broker) -> Receipt:
    return await broker.publish(
        address,
        frame.payload,
        kind=frame.kind,
        msg_id=message.msg_id,
        ttl=message.ttl,
        headers=message.headers,
    )


async def asend(
    service: str,
    user: str,
    *,
    text: str | None = None,
    bytes: Binary | None = None,
    json: Any = NOTHING,
    ttl: float | None = None,
    msg_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Receipt:
    """Store a message for a user; return once it is safe.

    Args:
        service: The service, for example ``orders``.
        user: The user's name.
        text: A text frame.
        bytes: A binary frame.
        json: Anything that Django's JSON encoder takes; becomes a text frame.
        ttl: Seconds after which it is gone, from 1 to 100 years; None:
            ``WSGATEWAY_INBOX_MAX_AGE``.
        msg_id: The same id is stored once for this user within ``WSGATEWAY_DUPLICATE_WINDOW``.
        headers: More NATS headers, for example ``traceparent``; none that begins with ``Nats-``.

    Raises:
        BrokerUnavailable: Not confirmed in time; send again with the same *msg_id*.
        QueueFull: The stream is at its limit; nothing was stored.
        MessageTooBig: Larger than ``WSGATEWAY_MAX_MESSAGE_SIZE``.
        MessageRefused: The server refuses this message.
        NameRefused: *service* or *user* is empty or too long, or nobody can have that name.
        TypeError: Not exactly one of *text*, *bytes* and *json*, or of a wrong type.
        ValueError: *ttl* is out of range, a header or *msg_id* is malformed, or the text or
            JSON cannot be written as UTF-8.
    """
    message = Outgoing(service, user, text, bytes, json, ttl, msg_id, headers)
    return await runtime.call(_storing(message))


def send(service: str, user: str, **options: Any) -> Receipt:
    """Do what `asend` does, from synchronous code; it takes the same arguments.

    Raises:
        RuntimeError: In a running event loop; await `asend` there.
    """
    runtime.refuse_in_loop("send()", "use `await asend(...)`")
    return runtime.call_sync(_storing(Outgoing(service, user, **options)))


async def asend_topic(
    service: str,
    name: str,
    *,
    text: str | None = None,
    bytes: Binary | None = None,
    json: Any = NOTHING,
    ttl: float | None = None,
    msg_id: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Receipt:
    """Store a message in a topic; return once it is safe.

    An ephemeral topic stores nothing. There, this returns once the message is on its way to
    those who read the topic now: its receipt has the offset 0, and *ttl* and *msg_id* mean nothing.

    Args:
        service: The service of the topic, for example ``room``.
        name: The topic's name within the service, for example ``42``.
        text: A text frame.
        bytes: A binary frame.
        json: Anything that Django's JSON encoder takes; becomes a text frame.
        ttl: Seconds after which it is gone, from 1 to 100 years; None: the ``max_age`` of the
            service in ``WSGATEWAY_TOPICS``.
        msg_id: The same id is stored once in this topic within ``WSGATEWAY_DUPLICATE_WINDOW``.
        headers: More NATS headers, for example ``traceparent``; none that begins with ``Nats-``.

    Raises:
        TopicsUnknown: No process declares topics of *service*.
        Exception: What else `asend` raises, for the same reasons.
    """
    message = OutgoingTopic(service, name, text, bytes, json, ttl, msg_id, headers)
    return await runtime.call(_storing(message))


def send_topic(service: str, name: str, **options: Any) -> Receipt:
    """Do what `asend_topic` does, from synchronous code; it takes the same arguments.

    Raises:
        RuntimeError: In a running event loop; await `asend_topic` there.
    """
    runtime.refuse_in_loop("send_topic()", "use `await asend_topic(...)`")
    return runtime.call_sync(_storing(OutgoingTopic(service, name, **options)))


Outcome = Receipt | Exception


class _Sending:
    """One `send_many`: checks in the caller's thread, and stores a chunk at a time."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._chunk: list[tuple[int, Address, Frame, AnyOutgoing]] = []
        self._bytes = 0

    def add(self, message: AnyOutgoing) -> bool:
        """Take a message; return True when it is time to store the chunk."""
        place = len(self.outcomes)
        try:
            if not isinstance(message, AnyOutgoing):
                raise TypeError(f"give Outgoing messages, not {type(message).__name__}")
            address, frame = message.prepare()
        except (WsGatewayError, TypeError, ValueError) as exc:
            self.outcomes.append(exc)
            return False
        self.outcomes.append(WsGatewayError("not sent"))
        self._chunk.append((place, address, frame, message))
        self._bytes += len(frame.payload)
        return len(self._chunk) >= CHUNK or self._bytes >= CHUNK_BYTES

    async def store(self, broker: Broker) -> None:
        """Store the chunk; in the broker's loop."""
        source = iter(self._chunk)

        async def publish_rest() -> None:
            for place, address, frame, message in source:
                try:
                    self.outcomes[place] = await _store(address, frame, message, broker)
                except Exception as exc:
                    self.outcomes[place] = exc

        async with asyncio.TaskGroup() as group:
            for _ in range(min(IN_FLIGHT, len(self._chunk))):
                group.create_task(publish_rest())
        self._chunk, self._bytes = [], 0

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Raise `PartlySent` if an exception ends the sending after the first message."""
        try:
            yield
        except Exception as exc:
            stored = sum(isinstance(outcome, Receipt) for outcome in self.outcomes)
            if not stored:
                raise
            raise PartlySent(self.outcomes, stored, exc) from exc


def send_many(messages: Iterable[AnyOutgoing]) -> list[Outcome]:
    """Store many messages, pipelined; one that fails does not stop the others.

    Args:
        messages: What to send, to users (`Outgoing`) or to topics (`OutgoingTopic`). A generator
            is read in this thread, as it goes: about a thousand messages, or 4 MB, are in memory
            at once.

    Returns:
        For each message, in order, its receipt, or the exception that `send` would have raised.
        Messages of the same user or topic are stored in order, as long as the broker does not
        fail over.

    Raises:
        PartlySent: *messages* raised, or the broker was lost, after some were stored. It has
            the outcomes so far. After any other exception nothing is stored.
        RuntimeError: In a running event loop; await `asend_many` there.
    """
    runtime.refuse_in_loop("send_many()", "use `await asend_many(...)`")
    sending = _Sending()
    with sending.reporting():
        for message in messages:
            if sending.add(message):
                runtime.call_sync(sending.store)
        runtime.call_sync(sending.store)
    return sending.outcomes


async def asend_many(
    messages: Iterable[AnyOutgoing] | AsyncIterable[AnyOutgoing],
) -> list[Outcome]:
    """Do what `send_many` does, from asynchronous code.

    Args:
        messages: The same, or an asynchronous iterable; read in the calling task. A queryset's
            rows come from ``queryset.aiterator()``.
    """
    sending = _Sending()
    with sending.reporting():
        async for message in _each(messages):
            if sending.add(message):
                await runtime.call(sending.store)
        await runtime.call(sending.store)
    return sending.outcomes


async def _each(
    messages: Iterable[AnyOutgoing] | AsyncIterable[AnyOutgoing],
) -> AsyncIterator[AnyOutgoing]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message


def send_on_commit(service: str, user: str, *, using: str | None = None, **options: Any) -> None:
    """Send after the current transaction has committed; never if it is rolled back.

    At once if there is no transaction. It is sent at most once: a process that dies between
    the commit and the sending has not sent it. If the broker does not take it, an error is
    logged and not raised, because the data is committed and other hooks must still run. Use
    `wsgateway.outbox` if that matters.

    Args:
        service: The service.
        user: The user's name.
        using: The database; None: the default one.
        options: As for `send`; checked now, so that a mistake rolls the transaction back.

    Raises:
        RuntimeError: In a running event loop, which the sending would block.
        Exception: What `send` raises for a mistake in the arguments.
    """
    _send_on_commit("send_on_commit()", Outgoing(service, user, **options), using)


def send_topic_on_commit(
    service: str, name: str, *, using: str | None = None, **options: Any
) -> None:
    """Do for a topic what `send_on_commit` does for a user.

    Args:
        service: The service of the topic.
        name: The topic's name within the service.
        using: The database; None: the default one.
        options: As for `send_topic`.
    """
    _send_on_commit("send_topic_on_commit()", OutgoingTopic(service, name, **options), using)


def _send_on_commit(caller: str, message: AnyOutgoing, using: str | None) -> None:
    runtime.refuse_in_loop(
        caller,
        "call it in the synchronous function that holds the transaction, and await that function "
        "with `sync_to_async`",
    )
    store = _storing(message)
    log_fields = (
        {"user": message.user} if isinstance(message, Outgoing) else {"topic": message.name}
    )

    def send_now() -> None:
        try:
            runtime.call_sync(store)
        except Exception:
            logger.exception(
                "did not send a message for service %s after the commit. "
                "wsgateway.outbox keeps such messages until they are sent",
                message.service,
                extra=log_fields,
            )

    transaction.on_commit(send_now, using=using)
