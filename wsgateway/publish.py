"""Publishing to users: `send`, `asend`, `send_many`, `asend_many`, `send_on_commit`."""

from __future__ import annotations

import asyncio
import json as jsonlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import transaction

from wsgateway import portal
from wsgateway.broker.base import Broker, Receipt
from wsgateway.conf import settings
from wsgateway.exceptions import MessageTooBig, WsGatewayError
from wsgateway.frames import Frame
from wsgateway.subjects import Inbox

__all__ = [
    "Outgoing",
    "Receipt",
    "asend",
    "asend_many",
    "frame_of",
    "send",
    "send_many",
    "send_on_commit",
]

IN_FLIGHT = 256
"""Messages of one `send_many` that wait for the broker at once."""
NOTHING: Any = object()
Binary = bytes  # the name is an argument's below


def frame_of(text: str | None, bytes: Binary | None, json: Any) -> Frame:
    """Return the frame that exactly one of the arguments means.

    Raises:
        TypeError: None or several are given, or of the wrong type.
    """
    given = (text is not None) + (bytes is not None) + (json is not NOTHING)
    if given != 1:
        raise TypeError(f"give exactly one of text, bytes and json; got {given}")
    if json is not NOTHING:
        return Frame.of(jsonlib.dumps(json, cls=DjangoJSONEncoder, separators=(",", ":")))
    data = text if text is not None else bytes
    if text is not None and not isinstance(text, str):
        raise TypeError(f"text must be str, not {type(text).__name__}; use bytes or json")
    if text is None and not isinstance(data, (Binary, bytearray, memoryview)):
        raise TypeError(f"bytes must be bytes, not {type(data).__name__}; use text or json")
    assert data is not None
    return Frame.of(data if isinstance(data, str) else Binary(data))


@dataclass(frozen=True)
class Outgoing:
    """One message of `send_many`; the arguments are those of `send`."""

    service: str
    user: str
    text: str | None = None
    bytes: Binary | None = None
    json: Any = field(default=NOTHING)
    ttl: float | None = None
    msg_id: str | None = None
    headers: Mapping[str, str] | None = None

    def prepare(self) -> tuple[Inbox, Frame]:
        """Return address and frame.

        Raises:
            TypeError: Not exactly one of text, bytes and json.
            MessageTooBig: Larger than ``WSGATEWAY_MAX_MESSAGE_SIZE``.
            ValueError: The ttl is below 1 s.
        """
        frame = frame_of(self.text, self.bytes, self.json)
        if len(frame.payload) > settings.MAX_MESSAGE_SIZE:
            raise MessageTooBig(len(frame.payload), settings.MAX_MESSAGE_SIZE)
        if self.ttl is not None and self.ttl < 1:
            raise ValueError(f"ttl is {self.ttl!r} s, but NATS takes 1 s or more")
        return Inbox(self.service, self.user), frame


async def _store(broker: Broker, message: Outgoing) -> Receipt:
    inbox, frame = message.prepare()
    return await broker.publish(
        inbox,
        frame.payload,
        kind=frame.kind,
        msg_id=message.msg_id or uuid.uuid4().hex,
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
        ttl: Seconds after which it is gone, at least 1; None: ``WSGATEWAY_INBOX_MAX_AGE``.
        msg_id: The same id is stored once within ``WSGATEWAY_DUPLICATE_WINDOW``; it must name
            the recipient too, because ids of all users are compared.
        headers: More NATS headers, for example ``traceparent``.

    Raises:
        BrokerUnavailable: Not confirmed in time; send again with the same *msg_id*.
        QueueFull: The stream is at its limit; nothing was stored.
        MessageTooBig: Larger than ``WSGATEWAY_MAX_MESSAGE_SIZE``.
        NameRefused: *service* or *user* is empty or too long.
        TypeError: Not exactly one of *text*, *bytes* and *json*.
    """
    message = Outgoing(service, user, text, bytes, json, ttl, msg_id, headers)
    return await portal.call(partial(_store, message=message))


def send(service: str, user: str, **options: Any) -> Receipt:
    """Do what `asend` does, from synchronous code; it takes the same arguments.

    Raises:
        RuntimeError: In a running event loop; await `asend` there.
    """
    message = Outgoing(service, user, **options)
    return portal.call_sync(partial(_store, message=message))


Outcome = Receipt | WsGatewayError | TypeError | ValueError


async def _store_many(broker: Broker, messages: Iterable[Outgoing]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    source: Iterator[Outgoing] = iter(messages)

    async def lane() -> None:
        for message in source:
            place = len(outcomes)
            outcomes.append(WsGatewayError("not sent"))
            try:
                outcomes[place] = await _store(broker, message)
            except (WsGatewayError, TypeError, ValueError) as exc:
                outcomes[place] = exc

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(lane())
    return outcomes


async def asend_many(messages: Iterable[Outgoing]) -> list[Outcome]:
    """Store many messages, pipelined; a failure does not stop the others.

    Args:
        messages: What to send; a generator is read as it goes.

    Returns:
        For each message, in order, its receipt, or the exception that `asend` would have raised.
        Messages of the same user are stored in order, as long as the broker does not fail over.
    """
    return await portal.call(partial(_store_many, messages=messages))


def send_many(messages: Iterable[Outgoing]) -> list[Outcome]:
    """Do what `asend_many` does, from synchronous code."""
    return portal.call_sync(partial(_store_many, messages=messages))


def send_on_commit(service: str, user: str, *, using: str | None = None, **options: Any) -> None:
    """Send after the current transaction has committed; never if it is rolled back.

    At once if there is no transaction. It is sent at most once: a process that dies between
    the commit and the sending has not sent it; use `wsgateway.outbox` where that matters.

    Args:
        service: The service.
        user: The user's name.
        using: The database; None: the default one.
        options: As for `send`; checked now, so that a mistake rolls the transaction back.
    """
    message = Outgoing(service, user, **options)
    message.prepare()
    transaction.on_commit(lambda: _send_now(message), using=using)


def _send_now(message: Outgoing) -> None:
    portal.call_sync(partial(_store, message=message))
