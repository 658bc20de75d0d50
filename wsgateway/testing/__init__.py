"""For tests of your own project: without a broker, or with a real one that is started for you.

pytest finds the fixtures ``wsgateway_memory`` and ``wsgateway_nats`` by itself (see
`wsgateway.testing.plugin`). Elsewhere, set ``PUBSUB_BROKER = "memory"``.
"""

from __future__ import annotations

import contextlib
import itertools
import json as jsonlib
import time
import warnings
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

from wsgateway import declared
from wsgateway.broker.memory import MemoryBroker, MemoryStore, shared_store
from wsgateway.broker.messages import (
    CLIENT_ID_HEADER,
    CONNECTION_HEADER,
    DEVICE_HEADER,
    REQUEST_HEADER,
    RESOLVER_HEADER,
    Stored,
    stamp,
)
from wsgateway.broker.work import History, Job
from wsgateway.conf import settings
from wsgateway.exceptions import TopicsUnknown
from wsgateway.layer.options import ConfiguredLayer
from wsgateway.outgoing import NOTHING, frame_of
from wsgateway.protocol.frames import EVENT, FRAME_HEADER, Frame
from wsgateway.protocol.subjects import Address, Inbox, Subjects, Topic, encode_token
from wsgateway.services.handling import Handling, Outcome
from wsgateway.services.policy import Retried
from wsgateway.services.registry import Service, get_service
from wsgateway.services.running import Running
from wsgateway.services.users import naming_path
from wsgateway.topics.marks import INBOX as MARKS

__all__ = ["Delivered", "Sent", "adeliver", "assert_not_sent", "assert_sent", "deliver", "sent"]

_number = itertools.count(1)
FORMER = {"retry": "retried", "refused": "rejected", "dead": "dead-lettered"}
"""Former words for what became of a message; remove them after the next release."""


@dataclass(frozen=True)
class Sent:
    """A message that was published to a user, or to a topic.

    Attributes:
        address: The user's inbox, or the topic.
        stored: What is stored.
    """

    address: Address
    stored: Stored

    @property
    def inbox(self) -> Inbox:
        """The user's inbox.

        Raises:
            TypeError: It was published to a topic.
        """
        if not isinstance(self.address, Inbox):
            raise TypeError(f"the message was published to the topic {self.address}, not to a user")
        return self.address

    @property
    def sender(self) -> Inbox | None:
        """Whose client wrote it to a topic with ``direct=True``; None for any other message."""
        return self.stored.sender

    @property
    def data(self) -> str | bytes:
        """A text frame as str, a binary one as bytes, and an event as it is stored."""
        return self.stored.payload if self.stored.kind == EVENT else self.stored.frame.data

    @property
    def event(self) -> dict[str, Any] | None:
        """The event that the default channel layer's `group_send` stored; None for a frame."""
        layer = get_channel_layer()
        if self.stored.kind != EVENT or not isinstance(layer, ConfiguredLayer):
            return None
        return layer.envelopes.event_of(self.stored)

    def json(self) -> Any:
        """Return the payload parsed as JSON."""
        return jsonlib.loads(self.stored.payload)


class _Word(str):
    """Says what became of a message; equals its former word, too."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and FORMER.get(other) == str(self):
            warnings.warn(f"write {str(self)!r}, not {other!r}", DeprecationWarning, stacklevel=2)
            return True
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


@dataclass(frozen=True)
class Delivered:
    """What happened to a message that was given to a handler.

    Attributes:
        outcome: ``done``, ``retried``, ``rejected`` or ``dead-lettered``.
        replies: What was published to the user while the handler ran.
        error: What the handler raised; None if it returned.
        after: Seconds until the next attempt, if the outcome is ``retried``.
    """

    outcome: str
    replies: list[Sent]
    error: BaseException | None
    after: float | None = None


def _store() -> MemoryStore:
    if settings.BROKER != "memory":
        raise AssertionError(
            "PUBSUB_BROKER is not 'memory': use the fixture wsgateway_memory, or override the "
            "setting in the test"
        )
    return shared_store(settings)


def sent(
    service: str | None = None, user: str | None = None, *, topic: str | None = None
) -> list[Sent]:
    """Return what was published, oldest first; to *service* and *user*, or to anybody.

    Args:
        service: The service.
        user: The user's name.
        topic: Instead of these, what was published to this topic, such as ``room.42``; of an
            ephemeral topic, the latest hundred messages.

    Raises:
        TypeError: *service* has topics, not users.
        TopicsUnknown: No ``@topic`` declares the service of *topic*.
    """
    store, ours = _store(), declared.declared_services()
    topics = ours.topics | ours.casts
    if topic is not None:
        if service is not None or user is not None:
            raise TypeError("pass a service and a user, or a topic")
        address = Topic.parse(topic)
        if address.service not in topics:
            is_other = address.service in ours.services
            raise TopicsUnknown(address.service, topics, is_other)
        kept = [each.stored for each in store.log(address).kept(address)]
        return [Sent(address, stored) for stored in [*kept, *store.heard_by(address)]]
    if service in topics:
        name = "42" if user is None else user
        raise TypeError(f"service {service!r} has topics, not users; pass topic='{service}.{name}'")
    found = [
        Sent(inbox, kept.stored)
        for inbox in list(store.inboxes.messages)
        if isinstance(inbox, Inbox) and inbox != MARKS
        if service in (None, inbox.service) and user in (None, inbox.user)
        for kept in store.inboxes.kept(inbox)
    ]
    return sorted(found, key=lambda message: message.stored.offset)


def assert_sent(
    service: str | None = None,
    user: str | None = None,
    *,
    topic: str | None = None,
    text: str | None = None,
    bytes: bytes | None = None,
    json: Any = NOTHING,
    event: dict[str, Any] | None = None,
    count: int | None = None,
) -> Sent:
    """Return the newest message to a user, or to a topic, that fits; fail if there is none.

    Args:
        service: The service.
        user: The user's name.
        topic: Instead of these, a topic, such as ``room.42``.
        text: Its text.
        bytes: Its bytes, of a binary frame.
        json: What its payload means as JSON; key order and spaces do not matter.
        event: The event, for a ``group_send`` of something else than a ``ws.message``.
        count: How many must fit; None: at least one.
    """
    if topic is None and (service is None or user is None):
        raise TypeError("pass a service and a user, or a topic")
    everything = sent(service, user, topic=topic)
    fitting = [message for message in everything if _fits(message, text, bytes, json, event)]
    if (count is None and fitting) or (count is not None and len(fitting) == count):
        return fitting[-1] if fitting else everything[-1]
    wanted = "a message" if count is None else f"{count} message(s)"
    given = {"text": text, "bytes": bytes, "event": event}
    expected = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if json is not NOTHING:
        expected.append(f"json={json!r}")
    fits = f"with {', '.join(expected)}" if expected else "of any kind"
    shown = ", ".join(repr(message.event or message.data) for message in everything) or "nothing"
    target = topic or f"{service}.{user}"
    raise AssertionError(
        f"{target} should have got {wanted} {fits}, but {len(fitting)} fit; it got: {shown}"
    )


def _fits(
    message: Sent, text: str | None, data: bytes | None, json: Any, event: dict[str, Any] | None
) -> bool:
    if event is not None and message.event != event:
        return False
    if text is not None and message.data != text:
        return False
    if data is not None and message.data != data:
        return False
    if json is NOTHING:
        return True
    try:
        return bool(message.json() == jsonlib.loads(frame_of(None, None, json).payload))
    except ValueError:
        return False


def assert_not_sent(
    service: str | None = None, user: str | None = None, *, topic: str | None = None
) -> None:
    """Fail if anything was published to *service* and *user*, to any user, or to *topic*."""
    found = sent(service, user, topic=topic)
    if found:
        shown = ", ".join(f"{sent.address}: {sent.event or sent.data!r}" for sent in found)
        raise AssertionError(f"nothing should have been sent, but this was: {shown}")


async def adeliver(
    service: str,
    user: str,
    *,
    topic: str | None = None,
    text: str | None = None,
    bytes: bytes | None = None,
    json: Any = NOTHING,
    request: bool = False,
    attempt: int = 1,
    device: str = "default",
    headers: Mapping[str, str] | None = None,
) -> Delivered:
    """Give a service's handler a message as a worker would, and say what became of it.

    Args:
        service: The service; its handler is found as ``runservice`` finds it.
        user: Who sends.
        topic: Where the user sends it, such as ``room.42``: its handler gets the message, or it is
            stored, if it is one with ``direct=True``. Nobody asks ``allow``.
        text: A text frame.
        bytes: A binary frame.
        json: Becomes a text frame.
        request: Whether the client waits for a reply.
        attempt: Which try this is; the first is 1.
        device: The user's device.
        headers: More headers.

    Raises:
        LookupError: No handler is registered for the service.
    """
    inbox, frame, id = Inbox(service, user), frame_of(text, bytes, json), f"test-{next(_number)}"
    values = {**_headers(frame, id, request, device), **(headers or {})}
    to = None if topic is None else Topic.parse(topic)
    if to is not None and _is_direct(to):
        async with _broker() as broker:
            await broker.offer_topic(to, inbox, frame, id, values, direct=True)
        return Delivered(_Word("done"), [], None)
    found = get_service(service if to is None else to.service)
    before = len(sent(service, user))
    verdict, error = outcome = await _handle(found, inbox, frame, values, id, attempt, to)
    after = verdict.after if isinstance(verdict, Retried) else None
    return Delivered(_Word(outcome.word), sent(service, user)[before:], error, after)


def _is_direct(topic: Topic) -> bool:
    declared.discover()
    service = declared.topics.get(topic.service)
    return service is not None and service.direct


@contextlib.asynccontextmanager
async def _broker() -> AsyncIterator[MemoryBroker]:
    """A broker in which every service exists."""
    known = declared.declared_services()._replace(is_open=True)
    broker = MemoryBroker(_store(), Subjects(settings.PREFIX), known)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def _handle(
    service: Service,
    inbox: Inbox,
    frame: Frame,
    headers: dict[str, str],
    id: str,
    attempt: int,
    topic: Topic | None,
) -> Outcome:
    """Store a message in the service's queue and handle it, as a worker does."""
    async with _broker() as broker:
        queue = broker.work_queue(service.name, _ignore, _ignore, settings.ACK_WAIT)
        handling = Handling(service, broker, queue, Running(settings.ACK_WAIT), None)
        if topic is None:
            offset, _ = await broker.offer(inbox, frame, id, headers)
        else:
            offset, _ = await broker.offer_topic(topic, inbox, frame, id, headers)
            headers = stamp(topic, inbox, headers, direct=False)
        job = Job(
            inbox,
            frame.payload,
            headers,
            sequence=offset,
            id=f"test.{service.name}.{offset}",
            deliveries=attempt,
            service=service.name,
            sent=time.time(),
        )
        try:
            if attempt > 1:
                await queue.note(job, History(attempt - 1, attempt - 1))
            outcome = await handling.handle(job, lambda: False)
        finally:
            handling.close()
            await service.close()
        if isinstance(outcome.verdict, Retried):
            queue.ack(job)  # the test says when it comes again
        return outcome


def _ignore(_: object) -> None:
    """Nothing comes: the queue is not opened."""


def _headers(frame: Frame, client_id: str, request: bool, device: str) -> dict[str, str]:
    """Return what a gateway says about a message of a ``wsgateway.v1`` client."""
    resolver = naming_path()
    return {
        FRAME_HEADER: frame.kind,
        CONNECTION_HEADER: "test",
        DEVICE_HEADER: encode_token(device),
        **({RESOLVER_HEADER: resolver} if resolver else {}),
        CLIENT_ID_HEADER: client_id,
        **({REQUEST_HEADER: client_id} if request else {}),
    }


def deliver(service: str, user: str, **options: Any) -> Delivered:
    """Do what `adeliver` does, in synchronous tests; it takes the same arguments."""
    return async_to_sync(adeliver)(service, user, **options)
