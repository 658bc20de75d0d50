"""What a broker takes and returns: messages, receipts, positions, and the headers they have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from wsgateway.exceptions import NameRefused
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import (
    ANONYMOUS,
    Address,
    Inbox,
    Topic,
    decode_token,
    encode_token,
)
from wsgateway.protocol.v1 import valid_id

__all__ = [
    "CLIENT_ID_HEADER",
    "CONNECTION_HEADER",
    "DEVICE_HEADER",
    "ERROR_HEADER",
    "MAX_HEADERS",
    "MAX_TTL",
    "MIN_TTL",
    "REPLY_TO_HEADER",
    "REQUEST_HEADER",
    "RESOLVER_HEADER",
    "SENDER_HEADER",
    "TOPIC_HEADER",
    "Batch",
    "Position",
    "Receipt",
    "Stored",
    "check_address",
    "check_headers",
    "check_published",
    "read_sender",
    "read_topic",
    "stamp",
    "write_sender",
    "write_topic",
]

MIN_TTL, MAX_TTL = 1, 100 * 365 * 86400
"""Seconds that a message may ask for. NATS takes no less; it computes in nanoseconds, and what
overflows there is stored without a limit, or refused."""
MAX_HEADERS = 63_000
"""Bytes of headers; JetStream takes 65,535, with its own and ours."""

CONNECTION_HEADER = "Ws-Connection"
"""On a client's message: names the socket that sent it."""
DEVICE_HEADER = "Ws-Device"
"""On a client's message: the user's device that sent it."""
RESOLVER_HEADER = "Ws-Resolver"
"""On a client's message: the entry of ``WSGATEWAY_IDENTITY`` that named its sender."""
CLIENT_ID_HEADER = "Ws-Client-Id"
"""On a message of a ``wsgateway.v1`` client: the id that the client gave it."""
REQUEST_HEADER = "Ws-Request"
"""On a message of a ``wsgateway.v1`` client that waits for a reply: the same id."""
TOPIC_HEADER = "Ws-Topic"
"""On a client's message to a topic, in its service's queue: the topic, see `write_topic`."""
SENDER_HEADER = "Ws-Sender"
"""On a client's message to a topic: the client's inbox, see `write_sender`. A gateway sets it, also
on what it stores in the topic itself; `Broker.publish` refuses it."""
REPLY_TO_HEADER = "Ws-Reply-To"
"""On a service's message: the id of the client's message that it answers."""
ERROR_HEADER = "Ws-Error"
"""On a service's answer: why the client's message was refused, one word."""


class Receipt(NamedTuple):
    """Proof that a message is stored.

    Attributes:
        offset: Its stream sequence.
        duplicate: True if its id was stored before; then *offset* is the first one's.
    """

    offset: int
    duplicate: bool


class Position(NamedTuple):
    """Where the inbox stream stands.

    Attributes:
        epoch: Names the life of the stream; offsets of another epoch mean nothing.
        first: No limit of the whole stream (age, bytes, messages) has removed anything from here
            on, nor a limit that was lower than today's. The oldest message kept, unless that one
            outlives the age limit, or a limit was raised since.
        last: Offset of the newest message, of any inbox; 0 if there never was one.
        gaps: How many offsets between the oldest message kept and *last* hold nothing.
        max_messages: How many messages an inbox keeps, as the stream itself says; 0: any number.
    """

    epoch: str
    first: int
    last: int
    gaps: int = 0
    max_messages: int = 0


class Stored:
    """A message of an inbox.

    Attributes:
        offset: Its stream sequence.
        previous: Offset of the inbox's message before it; 0 if none is kept; None if not known.
        payload: Its bytes.
        kind: Its ``Ws-Frame`` header; None without.
        time: When it was stored, as RFC 3339 text in UTC.
        reply_to: Its ``Ws-Reply-To`` header: the client's message that it answers; None without,
            or if that cannot be a client's id.
        error: Its ``Ws-Error`` header: why the service refused that message; None without, or
            if it answers none.
        trace: Its ``traceparent`` header, if it is sampled and this process traces.
        sender: Who wrote it to a topic, as the gateway says; None without.
        encoded: Its frame for ``wsgateway.v1`` clients of a topic, once one of them has it.
        event: The same as a server-sent event, without its id.
        skipped: Whether the log says already that sockets do not get it.
    """

    __slots__ = (
        "_frame",
        "encoded",
        "error",
        "event",
        "kind",
        "offset",
        "payload",
        "previous",
        "reply_to",
        "sender",
        "skipped",
        "time",
        "trace",
    )

    def __init__(
        self,
        offset: int,
        previous: int | None,
        payload: bytes,
        kind: str | None,
        time: str = "",
        reply_to: str | None = None,
        error: str | None = None,
    ) -> None:
        self.offset = offset
        self.previous = previous
        self.payload = payload
        self.kind = kind
        self.time = time
        # Anybody may have published them: what cannot be a client's id answers nothing
        self.reply_to = reply_to if reply_to is not None and valid_id(reply_to) else None
        self.error = (error or None) if self.reply_to is not None else None
        self.trace: str | None = None
        self.sender: Inbox | None = None
        self.encoded: str | None = None
        self.event: str | None = None
        self.skipped = False
        self._frame: Frame | None = None

    @property
    def frame(self) -> Frame:
        """The websocket frame it means; parsed once, however many sockets want it.

        Raises:
            MalformedMessage: It is not a frame.
        """
        if self._frame is None:
            self._frame = Frame.parse(self.payload, self.kind)
        return self._frame

    def __repr__(self) -> str:
        return f"<Stored {self.offset} after {self.previous}, {len(self.payload)} bytes>"


class Batch(NamedTuple):
    """Messages of one inbox, oldest first.

    Attributes:
        messages: What was read.
        more: True if the inbox held more than the limit allowed.
        anchored: True if the message before the first was asked for, is still kept, and shares
            the fate of those behind it: then no limit of the stream has removed one of them.
    """

    messages: list[Stored]
    more: bool
    anchored: bool = False


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse headers with line breaks, which could inject other headers.

    Raises:
        ValueError: A name or value is not text or holds a line break, or the name cannot be one.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f"header {name!r} is not text; give str for names and values")
        if not name.strip() or ":" in name or any(c in name + value for c in "\r\n\0"):
            raise ValueError(f"header {name!r} holds a line break or cannot be a header's name")


def check_address(address: Address) -> None:
    """Refuse an inbox that nobody can have.

    Raises:
        NameRefused: It is that of readers who are not logged in, who are many.
    """
    if isinstance(address, Inbox) and address.user == ANONYMOUS:
        raise NameRefused(
            f"{ANONYMOUS!r} is not a user: it stands for everyone who is not logged in; publish to "
            "a topic that they may read"
        )


def check_published(
    headers: Mapping[str, str] | None, ttl: float | None, msg_id: str | None = None
) -> None:
    """Refuse what no `Broker.publish` can store.

    Raises:
        TypeError: *ttl* is not a number.
        ValueError: *ttl* is out of range, or a header or *msg_id* is malformed, or a header
            belongs to the server.
    """
    if msg_id is not None:
        check_headers({"Nats-Msg-Id": msg_id})
    if ttl is not None:
        if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
            raise TypeError(f"ttl must be a number of seconds, not {type(ttl).__name__}")
        if not MIN_TTL <= ttl <= MAX_TTL:  # nan is not, either
            raise ValueError(f"ttl {ttl!r} is not between {MIN_TTL} and {MAX_TTL} seconds")
    if not headers:
        return
    if not isinstance(headers, Mapping):
        raise ValueError(f"headers must be a mapping, not {type(headers).__name__}")
    check_headers(headers)
    _check_owner(headers)
    size = sum(len(name.encode()) + len(value.encode()) + 4 for name, value in headers.items())
    if size > MAX_HEADERS:
        raise ValueError(f"headers of {size} bytes exceed {MAX_HEADERS} bytes")


def _check_owner(headers: Mapping[str, str]) -> None:
    """Refuse headers that only the server, or only a gateway, sets."""
    for name in headers:
        if name.lower() == SENDER_HEADER.lower():
            raise ValueError(
                f"header {name!r} says which client wrote a message, so only a gateway sets it; "
                "put the name into the message"
            )
        if name.lower().startswith("nats-"):
            raise ValueError(
                f"header {name!r} is an instruction to the NATS server; "
                "use msg_id or ttl, or publish with a NATS client"
            )


def write_sender(inbox: Inbox) -> str:
    """Return what the header `SENDER_HEADER` says of a client: both names, escaped, with a dot."""
    return f"{encode_token(inbox.service)}.{encode_token(inbox.user)}"


def stamp(
    topic: Topic, inbox: Inbox, headers: Mapping[str, str] | None, *, direct: bool
) -> dict[str, str]:
    """Return the headers with which a gateway publishes a client's message to a topic.

    Args:
        topic: Where the client sent it.
        inbox: The client's.
        headers: Others.
        direct: Whether it goes to the topic itself, whose subject names it.
    """
    stamped = {**(headers or {}), SENDER_HEADER: write_sender(inbox)}
    return stamped if direct else stamped | {TOPIC_HEADER: write_topic(topic)}


@lru_cache(maxsize=4096)  # a live topic has few writers and many messages
def read_sender(value: str | None) -> Inbox | None:
    """Return whom `SENDER_HEADER` names; None without, or if it names nobody."""
    names = _names(value)
    return names and Inbox(*names)


def write_topic(topic: Topic) -> str:
    """Return what the header `TOPIC_HEADER` says: both names, escaped, with a dot between."""
    return f"{encode_token(topic.service)}.{encode_token(topic.name)}"


def read_topic(value: str | None) -> Topic | None:
    """Return what `TOPIC_HEADER` names; None without, or if it names no topic."""
    names = _names(value)
    return names and Topic(*names)


def _names(value: str | None) -> tuple[str, str] | None:
    one, dot, other = (value or "").partition(".")
    try:
        return (decode_token(one), decode_token(other)) if dot else None
    except NameRefused:
        return None
