"""Durable groups: which they are, and how their messages are stored: in an inbox, or in a topic."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from channels.exceptions import MessageTooLarge

from wsgateway.broker.messages import Stored
from wsgateway.conf import settings
from wsgateway.declared import TopicKind
from wsgateway.exceptions import BrokerError, MessageTooBig, ServiceUnknown
from wsgateway.layer import blobs, wire
from wsgateway.protocol.frames import EVENT, Frame
from wsgateway.protocol.group_names import inbox_of_group, meant_services
from wsgateway.protocol.subjects import GROUP_SERVICE, Address, Inbox, Topic
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.broker.connection import Connection

__all__ = [
    "UNKNOWN_SERVICE",
    "Directory",
    "GroupName",
    "cast",
    "claim_of",
    "event_of",
    "frame_event",
    "kept_inbox",
    "payload_of",
    "store",
]

logger = logging.getLogger("wsgateway.layer")

NAMES_KEPT = 10_000
"""Names of groups and services that are remembered."""
LOOK_EVERY = 1.0
"""Seconds between two looks, in the background, at whether a service exists by now."""
UNKNOWN_SERVICE = "group %r names an inbox, but its messages are not stored: %s"
FRAME_TYPE = "ws.message"
"""The type of an event that is nothing but a websocket frame."""


class GroupName(NamedTuple):
    """What a group's name says about it.

    Attributes:
        name: The whole.
        subject: Where its messages go if they are not stored.
        inbox: Where they are stored if its service exists; None if it names no inbox. A service of
            topics has the topic of that name instead.
        kept: Where they are stored otherwise, because ``DURABLE_GROUPS`` says so; None: nowhere.
    """

    name: str
    subject: str
    inbox: Inbox | None
    kept: Inbox | None

    @property
    def topic(self) -> Topic | None:
        """Where they go if its service has topics; None if it names none."""
        return None if self.inbox is None else Topic(*self.inbox)

    @property
    def prefix(self) -> str:
        """What is before the first dot, if it has one and names no inbox; else ""."""
        first, dot, _ = self.name.partition(".")
        return first if dot and self.inbox is None else ""


class Directory:
    """Which groups are durable, as far as one layer knows.

    A group that names an inbox is durable if its service exists. What this process has once
    found not to exist costs nobody a round trip any more: it is looked for in the background.
    """

    def __init__(self) -> None:
        self._names: dict[str, GroupName] = {}
        self._absent: set[str] = set()  # services that did not exist when somebody looked
        self._look_at = 0.0  # when the background may look next
        self._warned: set[str] = set()  # services that do not exist, although somebody means them
        self.looking: set[asyncio.Task[Any]] = set()
        """Looks in the background that have not ended."""

    def get(self, group: str) -> GroupName | None:
        """Return what is known of a group's name; None for a new one, or one long unused."""
        return self._names.get(group)

    def clear(self) -> None:
        """Forget everything, as when the groups' subjects change."""
        self._names.clear()
        self._absent.clear()

    def add(self, connection: Connection, group: str) -> GroupName:
        """Return what a valid name says; warn if it looks like an inbox's and is not."""
        kept = kept_inbox(group)
        name = GroupName(group, connection.subjects.group(group), inbox_of_group(group), kept)
        if len(self._names) >= NAMES_KEPT:
            self._names.clear()
        self._names[group] = name
        if name.prefix and kept is None:
            self._run(connection, self._warn_of_form(connection, name))
        elif name.inbox is not None and kept is None:
            service = name.inbox.service
            is_meant = service in meant_services or ".." in group
            if (
                is_meant
                and service not in self._warned
                and not connection.broker.known_service(service)
                and not connection.broker.known_topics(service)
            ):
                self._run(connection, self._warn_of_service(connection, group, service))
        return name

    def known(self, connection: Connection, name: GroupName) -> tuple[bool, Address | None]:
        """Return whether it is known where a group is stored, and where; None: it is not."""
        if name.inbox is None:
            return True, name.kept
        service, broker = name.inbox.service, connection.broker
        exists = broker.known_service(service)
        if not exists and (kind := broker.known_topics(service)):
            return True, name.topic if kind is TopicKind.DURABLE else name.kept
        if exists is None and service in self._absent:
            self._look_again(connection, service)
            exists = False
        elif exists is False and service not in self._absent:
            if len(self._absent) >= NAMES_KEPT:
                self._absent.clear()
            self._absent.add(service)
        return exists is not None, name.inbox if exists else name.kept

    def cast_of(self, connection: Connection, name: GroupName) -> Topic | None:
        """Return the ephemeral topic that a group is as well; None: it is none, as far as known."""
        if name.inbox is None:
            return None
        known = connection.broker.known_topics(name.inbox.service)
        return name.topic if known is TopicKind.EPHEMERAL else None

    async def find(self, connection: Connection, name: GroupName) -> Address | None:
        """Return where a group is stored, None if it is not; in the connection's loop, connected.

        Raises:
            BrokerUnavailable: Not known, and the broker does not say.
        """
        if name.inbox is None:
            return name.kept
        if await _exists(connection, name.inbox.service):
            return name.inbox
        kind = await connection.broker.topics_of(name.inbox.service)
        return name.topic if kind is TopicKind.DURABLE else name.kept

    def _look_again(self, connection: Connection, service: str) -> None:
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._run(connection, self._look(connection, service))

    async def _look(self, connection: Connection, service: str) -> None:
        with contextlib.suppress(BrokerError):  # with a later send, again
            await _exists(connection, service)

    async def _warn_of_form(self, connection: Connection, name: GroupName) -> None:
        with contextlib.suppress(BrokerError):
            await connection.connect()
            broker = connection.broker
            if await _exists(connection, name.prefix) or await broker.topics_of(name.prefix):
                logger.warning(
                    "group %r begins with the service %r but does not name an inbox or topic, so "
                    "it is not stored. wsgateway.inbox_group(%r, name) makes valid names",
                    name.name,
                    name.prefix,
                    name.prefix,
                    extra={"group": name.name, "service": name.prefix},
                )

    async def _warn_of_service(self, connection: Connection, group: str, service: str) -> None:
        with contextlib.suppress(BrokerError):
            await connection.connect()
            broker = connection.broker
            exists = await _exists(connection, service) or await broker.topics_of(service)
            if not exists and service not in self._warned:
                if len(self._warned) >= NAMES_KEPT:
                    self._warned.clear()
                self._warned.add(service)
                logger.warning(
                    UNKNOWN_SERVICE,
                    group,
                    ServiceUnknown(service, connection.broker.service_names),
                    extra={"group": group, "service": service},
                )

    def _run(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        run = partial(start, work, "wsgateway-layer-groups", tasks=self.looking)
        try:
            connection.loop.call_soon_threadsafe(run)
        except RuntimeError:  # its loop is closed
            work.close()


def kept_inbox(group: str) -> Inbox | None:
    """Return where ``DURABLE_GROUPS`` has a group's messages stored; None: nowhere."""
    is_kept = any(fnmatch.fnmatchcase(group, pattern) for pattern in settings.DURABLE_GROUPS)
    return Inbox(GROUP_SERVICE, group) if is_kept else None


async def _exists(connection: Connection, service: str) -> bool:
    return await connection.broker.service_exists(service)


def payload_of(
    message: dict[str, Any], pack: Callable[[dict[str, Any]], bytes]
) -> tuple[bytes, str]:
    """Return the payload and the kind under which *message* is stored.

    An event that is nothing but a frame is stored as that frame, so that the gateway's sockets
    and other languages can read it.
    """
    if (frame := _frame_of(message)) is not None:
        return frame.payload, frame.kind
    data = pack(message)
    if len(data) > wire.COMPRESS_OVER or wire.is_enveloped(data):
        data = wire.compress(wire.pack(0.0, b"", data))
    return data, EVENT


def _frame_of(message: dict[str, Any]) -> Frame | None:
    """Return the frame that an event stands for, if it is nothing else."""
    if len(message) == 2 and message.get("type") == FRAME_TYPE:
        data = message.get("text", message.get("bytes"))
        if isinstance(data, str if "text" in message else (bytes, bytearray, memoryview)):
            return Frame.of(data if isinstance(data, str) else bytes(data))
    return None


def event_of(stored: Stored, unpack: Callable[[bytes], Any], limit: int) -> dict[str, Any]:
    """Return the event that a stored message means.

    Args:
        stored: The message.
        unpack: Undoes what `payload_of` was given as *pack*.
        limit: Bytes that it may have once decompressed.

    Raises:
        Exception: Whatever *unpack* raises, or `MalformedMessage`.
    """
    if stored.kind == EVENT:
        data = stored.payload
        event: dict[str, Any] = unpack(wire.body(data, limit) if wire.is_enveloped(data) else data)
        return event
    return frame_event(stored.payload, stored.kind)


def frame_event(payload: bytes, kind: str | None) -> dict[str, Any]:
    """Return the event that a plain frame means."""
    frame = Frame.parse(payload, kind)
    return {"type": FRAME_TYPE, "text" if frame.text else "bytes": frame.data}


async def cast(connection: Connection, topic: Topic, message: dict[str, Any]) -> None:
    """Send *message* to the sockets that read an ephemeral topic, if it is a frame."""
    if (found := _frame_of(message)) is not None:
        await connection.broker.publish(topic, found.payload, kind=found.kind)


async def store(connection: Connection, address: Address, payload: bytes, kind: str) -> None:
    """Store a durable group's message; retried until the deadline, stored at most once.

    Raises:
        MessageTooLarge: It is a frame, which has to fit one message of the server.
        BrokerError: It is not stored, or nobody knows.
    """
    try:
        await connection.broker.publish(address, payload, kind=kind)
    except MessageTooBig as exc:
        if kind != EVENT:
            raise MessageTooLarge(
                f"{exc}; a {FRAME_TYPE} is stored as the frame itself, for sockets and other "
                "languages to read: send less, raise max_payload, or send an event of another type"
            ) from exc
        data = payload if wire.is_enveloped(payload) else wire.pack(0.0, b"", payload)
        claim = await blobs.store(connection.broker.blobs, data)
        await connection.broker.publish(address, claim, kind=kind)


def claim_of(stored: Stored) -> bytes | None:
    """Return the claim that stands for a stored message; None if it is the message itself."""
    data = stored.payload
    if stored.kind == EVENT and wire.is_enveloped(data) and wire.is_claim(data):
        return data
    return None
