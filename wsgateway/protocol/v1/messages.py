"""What the frames of ``wsgateway.v1`` say, and what is wrong with those that are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s

from wsgateway.exceptions import WsGatewayError
from wsgateway.protocol.endpoint import Confirm, Since, Subscribe
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic, encode_token

__all__ = [
    "Accepted",
    "Ack",
    "ClientMessage",
    "Closing",
    "ErrorCode",
    "Ping",
    "Pong",
    "Presence",
    "ProtocolError",
    "Readers",
    "ReadersChanged",
    "Reason",
    "Refresh",
    "Refreshed",
    "Refused",
    "Resume",
    "ServerMessage",
    "Subscribed",
    "TopicUnwatched",
    "Unknown",
    "UnsubscribeFrom",
    "Unsubscribed",
    "Unwatch",
    "UnwatchTopic",
    "Unwatched",
    "Watch",
    "WatchTopic",
    "Watching",
    "Welcome",
    "encode_ping",
    "encode_pong",
    "mark_of",
    "name_epoch",
    "valid_id",
]

JOINT = "~"
"""Joins the parts of `name_epoch`; in no epoch itself."""
MARK_SIZE = 6
"""Bytes of an inbox's mark in a position. It prevents mistakes; no right depends on it."""
MAX_AFTER = 3600
"""Longest delay, in seconds, that a gateway asks for."""
MAX_PING = 86400
"""What a welcome's ``ping`` is below, seconds."""

_ID = re.compile(r"[!-~]{1,64}\Z")


class ErrorCode(StrEnum):
    """Why a client's frame was refused; *temporary* if it may be sent again as it is."""

    temporary: bool
    meaning: str

    def __new__(cls, value: str, temporary: bool, meaning: str) -> ErrorCode:
        member = str.__new__(cls, value)
        member._value_ = value
        member.temporary = temporary
        member.meaning = meaning
        return member

    BAD_REQUEST = "bad_request", False, "the frame breaks the protocol"
    UNKNOWN_TYPE = "unknown_type", False, "this gateway does not know that type of message"
    TOO_BIG = "too_big", False, "the message is larger than the gateway accepts"
    FORBIDDEN = "forbidden", False, "the client may not do that"
    UNAUTHORIZED = "unauthorized", False, "the token of the `refresh` was not accepted"
    TOO_MANY = "too_many", False, "the socket has reached its limit for these"
    TOO_SLOW = "too_slow", True, "the client reads more slowly than messages come"
    QUEUE_FULL = "queue_full", True, "the service's queue is at its limit; nothing was stored"
    RATE_LIMIT = "rate_limit", True, "the client sends faster than it may; nothing was stored"
    UNAVAILABLE = "unavailable", True, "the broker did not confirm it; it may have been stored"
    INTERNAL = "internal", True, "the gateway failed; it may have been stored"


class Reason(StrEnum):
    """Why a welcome says ``recovered: false``; clients accept others too."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Reason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    NEW = "new", "neither the client nor its device has a position yet"
    EPOCH = "epoch", "the client's position belongs to another stream or another user"
    TRIMMED = "trimmed", "messages after the position may have expired or been trimmed"
    AHEAD = "ahead", "the stream lost its end, and the position is beyond it"


class ProtocolError(WsGatewayError, ValueError):
    """A frame or query that the protocol does not allow.

    Args:
        code: What to answer with.
        message: Short text for the developer at the other end; never holds a payload.
        id: The refused message's id, if it could be read.
        fatal: The other end speaks something else; close with 4500 instead of an answer.
    """

    def __init__(
        self, code: ErrorCode, message: str, id: str | None = None, *, fatal: bool = False
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.id = id
        self.fatal = fatal

    def __str__(self) -> str:
        return self.message


@dataclass(slots=True)
class ClientMessage:
    """What a client publishes; *id* makes a retry idempotent, *request* asks for a reply.

    *trace* is its trace context: ``traceparent``, perhaps ``tracestate``; None without. *topic*
    is where it goes; None: the client's service.
    """

    id: str
    frame: Frame
    request: bool = False
    trace: Mapping[str, str] | None = None
    topic: Topic | None = None


@dataclass(slots=True)
class Ack(Confirm):
    """What a client acknowledges.

    Without *epoch* nobody knows whether it is about the stream before, once that was replaced. So
    one with a *topic* always has it.
    """

    epoch: str | None = None


@dataclass(slots=True)
class UnsubscribeFrom:
    """A client does not want to read a topic any more."""

    topic: Topic


@dataclass(slots=True)
class Watch:
    """A client wants to know whether a user is online; *service* None: its own."""

    id: str
    service: str | None
    user: str


@dataclass(slots=True)
class Unwatch:
    """It does not any more."""

    service: str | None
    user: str


@dataclass(slots=True)
class WatchTopic:
    """A client wants to know who reads a topic; *token* may prove that it may."""

    id: str
    topic: Topic
    token: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class UnwatchTopic:
    """It does not any more."""

    topic: Topic


@dataclass(slots=True)
class Refresh:
    """A client has a new token, which is to let the socket live on."""

    token: str = field(repr=False)


@dataclass(slots=True)
class Ping:
    """Answer with a pong."""


@dataclass(slots=True)
class Pong:
    """The answer to a ping."""


@dataclass(slots=True)
class Welcome:
    """Where delivery begins.

    Attributes:
        offset: The first message has a larger offset.
        recovered: Nothing between the client's position and what follows is missing.
        reason: Why *recovered* is false, see `Reason`; None if it is true.
        ping: Seconds between the gateway's pings.
        window: Messages that the gateway sends without acknowledgement.
        max_message_size: Largest payload that the gateway takes, bytes, however it is encoded.
        inbox: See `mark_of`; None from a gateway of an earlier version.
        expires_in: Seconds until the gateway closes the socket, unless the client refreshes; None:
            its login has no end that is known.
    """

    connection: str
    service: str
    user: str
    device: str
    epoch: str
    offset: int
    recovered: bool
    reason: str | None
    ping: float
    window: int
    max_message_size: int
    inbox: str | None = None
    expires_in: float | None = None


@dataclass(slots=True)
class ServerMessage:
    """A message of the inbox, or of a topic.

    Attributes:
        offset: 0 in an ephemeral topic.
        time: RFC 3339 text; None if not known.
        reply_to: Id of the client's message that this answers; None if it answers none.
        error: Why the service refused that message; None unless it did.
        topic: Which topic's, as text; None: the inbox's.
        sender: Who wrote it to the topic, if the gateway knows.
    """

    offset: int
    time: str | None
    frame: Frame
    reply_to: str | None = None
    error: str | None = None
    topic: str | None = None
    sender: Inbox | None = None


@dataclass(slots=True)
class Accepted:
    """The client's message *id* is stored."""

    id: str


@dataclass(slots=True)
class Refused:
    """The client's message or watch *id* was refused; None if its id could not be read."""

    id: str | None
    code: str
    message: str
    temporary: bool


@dataclass(slots=True)
class Presence:
    """Whether a watched user is online has changed; *online* None: not known now."""

    service: str
    user: str
    online: bool | None


@dataclass(slots=True)
class Watching(Presence):
    """The client watches a user from now on; *id* is that of its `Watch`."""

    id: str


@dataclass(slots=True)
class Readers:
    """Who reads a watched topic, which replaces what the client knows.

    Attributes:
        users: Who; None: too many to name.
        sockets: How many sockets read it, if users are not named; otherwise 0.
        complete: Whether the gateway has heard from all others. If not, there may be more, and
            those who are named may have left.
        id: Of the `WatchTopic` that this answers; None: of a change.
    """

    topic: str
    users: list[Inbox] | None
    sockets: int
    complete: bool
    id: str | None = None


@dataclass(slots=True)
class ReadersChanged:
    """Who began and who ceased to read a watched topic; *complete* as in `Readers`."""

    topic: str
    joined: list[Inbox]
    left: list[Inbox]
    complete: bool


@dataclass(slots=True)
class TopicUnwatched:
    """The gateway has ended the watch of a topic; the others as in `Unwatched`."""

    topic: str
    code: str
    reason: str


@dataclass(slots=True)
class Unwatched:
    """The gateway has ended a watch; *code* as in `Refused`, *reason* is for the developer."""

    service: str
    user: str
    code: str
    reason: str


@dataclass(slots=True)
class Subscribed:
    """A subscription begins, or its topic's stream or the client's right has changed.

    Attributes:
        id: Of the question that this answers; None: of a change.
        epoch: As in a `Welcome`, like *offset*, *recovered* and *reason*.
        durable: Whether it has these; otherwise *epoch* is empty, *offset* 0, and nothing
            is *recovered*.
        access: What the client may do: ``read`` or ``write``; clients accept others too.
    """

    topic: str
    access: str
    id: str | None = None
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    reason: str | None = None
    durable: bool = True


@dataclass(slots=True)
class Unsubscribed:
    """A subscription was refused, or has ended.

    Attributes:
        id: Of the question that is refused; None: it has ended.
        code: Why, as in `Refused`, like *temporary*; None: because the client has asked for it.
        reason: The same for the developer.
    """

    topic: str
    id: str | None = None
    code: str | None = None
    reason: str | None = None
    temporary: bool = False


@dataclass(slots=True)
class Refreshed:
    """The new token was accepted; *expires_in* as in `Welcome`."""

    expires_in: float | None = None


@dataclass(slots=True)
class Closing:
    """The gateway is about to close the connection.

    Attributes:
        reconnect_after: Seconds to wait before the next attempt, instead of the client's backoff.
    """

    reconnect_after: float


@dataclass(slots=True)
class Unknown:
    """A type of a later version; clients ignore it."""

    type: str


@dataclass(slots=True)
class Resume:
    """What a client asks for when it connects; both *epoch* and *offset*, or neither.

    Attributes:
        inbox: `mark_of` the inbox that the position is from; None if the client does not say.
        since: Where it begins in the inbox if it has no position, and its *device* no cursor;
            None: a device that it does not name counts as well, and without a cursor it begins
            with all that is kept.
        topics: What it reads from the beginning.
    """

    device: str | None = None
    epoch: str | None = None
    offset: int | None = None
    inbox: str | None = None
    since: Since | None = None
    topics: Sequence[Subscribe] = ()

    @property
    def stream_epoch(self) -> str:
        """The stream's epoch, without what `name_epoch` adds."""
        return (self.epoch or "").partition(JOINT)[0]

    def is_of(self, inbox: Inbox) -> bool:
        """Whether the position, if there is one, may be from *inbox*.

        All inboxes share the stream's offsets, so another inbox's position looks plausible.
        """
        return self.offset is None or self.inbox is None or self.inbox == mark_of(inbox)


def mark_of(inbox: Inbox) -> str:
    """Return what a client sends back with its position, so that no other inbox resumes it.

    It is not in the epoch: gateways of earlier versions compare that, and ignore this.
    """
    name = f"{encode_token(inbox.service)}.{encode_token(inbox.user)}"
    return blake2s(name.encode(), digest_size=MARK_SIZE).hexdigest()


def name_epoch(epoch: str, lives: int) -> str:
    """Return what a client calls the *epoch* of its offsets; opaque to clients.

    Args:
        epoch: The stream's.
        lives: How often delivery began again on the client's connection. A stream that loses its
            end keeps its epoch, and a late acknowledgement would confirm other messages.
    """
    return f"{epoch}{JOINT}{lives}" if lives else epoch


def valid_id(id: object) -> bool:
    """Say whether *id* may name a client's message: it must fit into a NATS header."""
    return isinstance(id, str) and _ID.match(id) is not None


def encode_ping() -> str:
    """Return a ping; either end may send it."""
    return '{"type":"ping"}'


def encode_pong() -> str:
    """Return the answer to a ping."""
    return '{"type":"pong"}'
