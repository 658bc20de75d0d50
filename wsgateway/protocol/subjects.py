"""Names to NATS subjects, both ways. Pure.

A token keeps ``[A-Za-z0-9_-]``; every other byte of the name's UTF-8 form becomes ``=XX``
(upper-case hexadecimal). ``=`` is legal in subjects and in key-value keys, and can only stand
for an escape, so two names never share a token and no name can hold ``.``, ``*`` or ``>``.

What a user of one service sends to another, to a topic of it, has the user's inbox as one token:
both names' tokens, joined by ``==``, which no name's token holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from wsgateway.exceptions import NameRefused

__all__ = [
    "ANONYMOUS",
    "GROUP_SERVICE",
    "MAX_MEMBER_ID",
    "Address",
    "Inbox",
    "Subjects",
    "Topic",
    "decode_token",
    "encode_token",
    "is_sent_by",
    "parse_sender",
    "sender_token",
]

ANONYMOUS = "(anonymous)"
"""The name that all readers share who are not logged in; nobody else has it."""

GROUP_SERVICE = "\0group"
"""The service of the inboxes that hold durable groups that belong to no user. Only this very object
means it, so that no client can name it: its token is a bare ``=``, which no name encodes to."""
_GROUP_TOKEN = "="  # noqa: S105 - a subject's token
_JOINT = "=="
"""Joins the tokens of an inbox to one."""

CONSUMER = "service-"
"""How the name of a service's consumer begins."""
MAX_STREAM_NAME = 255
"""Longest name of a stream or consumer that NATS takes."""
MAX_NAME_BYTES = 255
"""Longest name, in UTF-8 bytes; escaping at most triples it and NATS takes 4,096 a line."""
MAX_MEMBER_ID = 60
"""Characters of the longest id that a process has in the roster."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")
_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_UNSAFE_IN_STREAM = re.compile(rb"[^a-z0-9_-]")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")
_TOKEN = re.compile(rb"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+\Z")


class Inbox(NamedTuple):
    """The address of one user's messages within one service."""

    service: str
    user: str


@dataclass(frozen=True, slots=True)
class Topic:
    """The address of the messages that many may read, such as those of a chat room.

    Not a tuple, so that it never equals an `Inbox`.
    """

    service: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Topic:
        """Return the topic that *text* names: ``room.42`` is ``42`` of the service ``room``.

        Raises:
            NameRefused: It has no dot, or one of the names before and after the first dot cannot
                be a name.
        """
        service, dot, name = text.partition(".") if isinstance(text, str) else ("", "", "")
        if not dot:
            shown = text[:40] if isinstance(text, str) else text
            raise NameRefused(f"topic {shown!r} is not <service>.<name>, such as 'room.42'")
        encode_token(service)
        encode_token(name)
        return cls(service, name)

    def __str__(self) -> str:
        return f"{self.service}.{self.name}"


Address = Inbox | Topic
"""What a message is stored under."""


@lru_cache(maxsize=16384)  # clients make some up, and an entry takes up to 2 KB
def encode_token(name: str) -> str:
    """Return the one subject token that stands for *name*.

    Raises:
        NameRefused: *name* is not text, or is empty, too long, or not encodable as UTF-8.
    """
    if not isinstance(name, str) or not name:
        raise NameRefused(_why_no_name(name))
    try:
        raw = name.encode()
    except UnicodeEncodeError as exc:
        raise NameRefused(f"name {name!r} is not valid Unicode text") from exc
    if len(raw) > MAX_NAME_BYTES:
        raise NameRefused(
            f"name of {len(raw)} bytes exceeds {MAX_NAME_BYTES} bytes: {name[:40]!r}…"
        )
    if _PLAIN.match(name):
        return name
    return _UNSAFE.sub(lambda found: b"=%02X" % found.group()[0], raw).decode()


def _why_no_name(name: object) -> str:
    if isinstance(name, int):  # most likely a primary key
        return f"name {name!r} is a number, not text; pass str({name!r})"
    return f"name {name!r} is empty or not text; give a non-empty string"


def decode_token(token: str) -> str:
    """Return the name that *token* stands for; the inverse of `encode_token`.

    Raises:
        NameRefused: *token* is not what `encode_token` produces for any name.
    """
    if _PLAIN.match(token):
        return token
    raw = token.encode("utf-8", "surrogatepass")
    if not _TOKEN.match(raw):
        raise NameRefused(f"subject token {token!r} is not an escaped name")
    try:
        name = _ESCAPE.sub(lambda found: bytes([int(found.group(1), 16)]), raw).decode()
    except UnicodeDecodeError as exc:
        raise NameRefused(f"subject token {token!r} is not an escaped name") from exc
    if encode_token(name) != token:
        raise NameRefused(f"subject token {token!r} escapes what needs no escape")
    return name


def sender_token(inbox: Inbox, service: str) -> str:
    """Return the one subject token that stands for a client's inbox among messages to *service*.

    That is the user's; or, for a user of another service, who can only send to topics of this one,
    ``<service>==<user>``.

    Raises:
        NameRefused: See `encode_token`.
    """
    if inbox.service == service:
        return encode_token(inbox.user)
    return f"{encode_token(inbox.service)}{_JOINT}{encode_token(inbox.user)}"


def parse_sender(token: str, service: str) -> Inbox:
    """Return the inbox that *token* stands for; the inverse of `sender_token`.

    Raises:
        NameRefused: *token* is not what `sender_token` produces for any inbox.
    """
    own, joint, user = token.partition(_JOINT)
    if not joint:
        return Inbox(service, decode_token(token))
    inbox = Inbox(decode_token(own), decode_token(user))
    if inbox.service == service:
        raise NameRefused(f"subject token {token!r} names the service that it belongs to")
    return inbox


def is_sent_by(subject: str, user: str) -> bool:
    """Say whether *subject* is of what a user called *user* has sent to a topic, of any service."""
    return subject.endswith(f"{_JOINT}{encode_token(user)}")


class Subjects:
    """The subjects, stream and bucket names below one prefix.

    Args:
        prefix: One or more plain tokens joined by dots, for example ``ws`` or ``acme.ws``.
    """

    def __init__(self, prefix: str = "ws") -> None:
        tokens = prefix.split(".")
        if not all(_PLAIN.match(token) for token in tokens):
            raise NameRefused(
                f"prefix {prefix!r} is not made of [A-Za-z0-9_-] tokens joined by dots"
            )
        self.prefix = prefix
        self.upper = "_".join(tokens).replace("-", "_").upper()
        self._skip = len(tokens) + 1

    def _inbox(self, kind: str, inbox: Inbox) -> str:
        group = inbox.service is GROUP_SERVICE
        service = _GROUP_TOKEN if group else encode_token(inbox.service)
        return f"{self.prefix}.{kind}.{service}.{encode_token(inbox.user)}"

    def _sent(self, kind: str, inbox: Inbox, service: str | None) -> str:
        if service is None or service == inbox.service:
            return self._inbox(kind, inbox)
        return f"{self.prefix}.{kind}.{encode_token(service)}.{sender_token(inbox, service)}"

    def recv(self, inbox: Inbox) -> str:
        """Where services publish to a user; stored in the inbox stream."""
        return self._inbox("recv", inbox)

    def send(self, inbox: Inbox, service: str | None = None) -> str:
        """Where the gateway publishes what a client sent.

        Args:
            inbox: Whose client; answers go there.
            service: Who handles it, if that is not the inbox's service but one of topics.
        """
        return self._sent("send", inbox, service)

    def live(self, inbox: Inbox) -> str:
        """Where JetStream republishes what was stored for a user."""
        return self._inbox("live", inbox)

    def topic(self, topic: Topic) -> str:
        """Where a durable topic's messages are published; stored in its service's stream."""
        return f"{self.prefix}.topic.{encode_token(topic.service)}.{encode_token(topic.name)}"

    def stored(self, address: Address) -> str:
        """Where what is stored under *address* is published."""
        return self.topic(address) if isinstance(address, Topic) else self.recv(address)

    def republished(self, address: Address) -> str:
        """Where JetStream republishes what is stored under *address*."""
        return self.topic_live(address) if isinstance(address, Topic) else self.live(address)

    def topic_live(self, topic: Topic) -> str:
        """Where JetStream republishes what was stored in a topic.

        One token longer than `live`, so that no user's subject can be the same.
        """
        tokens = f"{encode_token(topic.service)}.{encode_token(topic.name)}"
        return f"{self.prefix}.live.topic.{tokens}"

    def cast(self, topic: Topic) -> str:
        """Where an ephemeral topic's messages are published; nothing keeps them."""
        return f"{self.prefix}.cast.{encode_token(topic.service)}.{encode_token(topic.name)}"

    def conn(self, inbox: Inbox) -> str:
        """Where presence and control requests for a user go."""
        return self._inbox("conn", inbox)

    def member(self, kind: str, id: str) -> str:
        """Where one process answers questions about itself.

        Args:
            kind: What it is, for example ``gateway``.
            id: Its id in the roster.

        Raises:
            NameRefused: No process has this id.
        """
        if not isinstance(id, str) or not _PLAIN.match(id) or len(id) > MAX_MEMBER_ID:
            raise NameRefused(
                f"no {kind} has the id {id!r}: it is at most {MAX_MEMBER_ID} of [A-Za-z0-9_-]"
            )
        return f"{self.prefix}.{kind}.{id}"

    def event(self, address: Address) -> str:
        """Where gateways say that a user's sockets come and go, or those that read a topic."""
        if isinstance(address, Topic):
            return (
                f"{self.prefix}.event.{encode_token(address.service)}.{encode_token(address.name)}"
            )
        return self._inbox("event", address)

    def dead(self, inbox: Inbox, service: str | None = None) -> str:
        """Where messages go that no handler could process; see `send`."""
        return self._sent("dead", inbox, service)

    def group(self, name: str) -> str:
        """Where an ephemeral group's messages go (one token, so no stream keeps them)."""
        return f"{self.prefix}.recv.{encode_token(name)}"

    def channel(self, name: str) -> str:
        """Where messages to a normal channel go; kept until read."""
        return f"{self.prefix}.chan.{encode_token(name)}"

    def process(self, client_id: str) -> str:
        """Where messages to one process's channels go."""
        return f"{self.prefix}.proc.{encode_token(client_id)}"

    def leave(self, group: str, channel: str) -> str:
        """Where processes are told that a normal channel leaves a group."""
        return f"{self.prefix}.leave.{encode_token(group)}.{encode_token(channel)}"

    def broadcast(self, topic: str) -> str:
        """Where every process is told about *topic*."""
        return f"{self.prefix}.all.{topic}"

    @property
    def probe(self) -> str:
        """Where a process finds out which servers know its subscriptions; see `propagation`."""
        return self.broadcast("probe")

    def all_of(self, kind: str, service: str | None = None) -> str:
        """Return the wildcard for every user or topic of *service* (None: of every service)."""
        return f"{self.prefix}.{kind}.{'*' if service is None else encode_token(service)}.*"

    def template(self, kind: str, service: str | None) -> str:
        """Return what the subjects of *service* (None: of any) have in common."""
        if service is GROUP_SERVICE:
            return f"{self.prefix}.{kind}.{_GROUP_TOKEN}.{{group}}"
        token = "{service}" if service is None else encode_token(service)
        last = "{name}" if kind == "topic" else "{user}"
        return f"{self.prefix}.{kind}.{token}.{last}"

    def parse(self, subject: str) -> tuple[str, Inbox]:
        """Return the kind and the inbox that a four-token subject names.

        Raises:
            NameRefused: *subject* has another shape or prefix.
        """
        tokens = subject.split(".")
        if len(tokens) != self._skip + 2 or not subject.startswith(self.prefix + "."):
            raise NameRefused(f"subject {subject!r} is not {self.prefix}.<kind>.<service>.<user>")
        group = tokens[-2] == _GROUP_TOKEN
        service = GROUP_SERVICE if group else decode_token(tokens[-2])
        return tokens[self._skip - 1], Inbox(service, decode_token(tokens[-1]))

    def parse_sent(self, subject: str) -> tuple[str, Inbox]:
        """Return the service and the sender's inbox that a subject of `send` or `dead` names.

        The inbox is of another service if the message was sent to a topic.

        Raises:
            NameRefused: *subject* has another shape or prefix.
        """
        head, _, token = subject.rpartition(".")
        if _JOINT not in token:
            inbox = self.parse(subject)[1]
            return inbox.service, inbox
        service = self.parse(f"{head}.x")[1].service
        if service is GROUP_SERVICE:
            raise NameRefused(f"subject {subject!r} sends to durable groups, which nobody serves")
        return service, parse_sender(token, service)

    def move(self, inbox: Inbox, service: str | None = None) -> str:
        """Where `setup_streams` publishes what it moves into a service's stream; see `send`."""
        return self._sent("move", inbox, service)

    def cursor_key(self, inbox: Inbox, device: str) -> str:
        """Return the key-value key of a device's cursor."""
        tokens = (encode_token(inbox.service), encode_token(inbox.user), encode_token(device))
        return ".".join(tokens)

    def roster_key(self, kind: str, id: str) -> str:
        """Return the subject that holds a process's entry in the roster; ``*`` for all ids."""
        return f"$KV.{self.upper}_ROSTER.{kind}.{id}"

    def turn(self, service: str) -> str:
        """Where workers of *service* tell each other whose message has left the queue."""
        return f"{self.prefix}.turn.{encode_token(service)}"

    def tries_key(self, service: str, message_id: str) -> str:
        """Return the subject that holds a client message's history, see `WorkQueue`."""
        return f"$KV.{self.upper}_TRIES.{encode_token(service)}.{message_id}"

    def bucket(self, kind: str) -> str:
        """Return the stream behind a key-value bucket, for example ``KV_WS_CURSORS``."""
        return f"KV_{self.upper}_{kind.upper()}"

    def stream(self, kind: str) -> str:
        """Return the stream's name, for example ``WS_RECV``."""
        return f"{self.upper}_{kind.upper()}"

    def queue(self, service: str) -> str:
        """Return the name of the stream that holds what clients send to *service*.

        The server keeps a stream in a folder of its name, and not every file system tells upper
        case from lower. So upper-case letters are escaped here, too.

        Raises:
            NameRefused: No service can have this name.
        """
        return self._own_stream("SEND", service)

    def topic_stream(self, service: str) -> str:
        """Return the name of the stream that holds the topics of *service*; see `queue`.

        Raises:
            NameRefused: No service can have this name.
        """
        return self._own_stream("TOPIC", service)

    def cast_stream(self, service: str) -> str:
        """Return the name of the empty stream that says that *service* has ephemeral topics.

        Raises:
            NameRefused: No service can have this name.
        """
        return self._own_stream("CAST", service)

    def _own_stream(self, kind: str, service: str) -> str:
        encode_token(service)
        token = _UNSAFE_IN_STREAM.sub(lambda found: b"=%02X" % found.group()[0], service.encode())
        return _short_enough(service, f"{self.upper}_{kind}_{token.decode()}")

    def consumer(self, service: str) -> str:
        """Return the name of the consumer that all workers of *service* share.

        Raises:
            NameRefused: No service can have this name.
        """
        return _short_enough(service, f"{CONSUMER}{encode_token(service)}")

    def service_of_consumer(self, name: str) -> str | None:
        """Return the service whose workers share the consumer *name*; None if it is not one."""
        try:
            return decode_token(name.removeprefix(CONSUMER)) if name.startswith(CONSUMER) else None
        except NameRefused:
            return None

    def require_service(self, service: str) -> None:
        """Refuse a name that no stream, or no consumer, can have.

        Raises:
            NameRefused: No service can have this name.
        """
        self.queue(service)
        self.consumer(service)

    def service_of(self, queue: str) -> str | None:
        """Return the service whose queue has this name; None if it is not a service's."""
        return self._owner("SEND", queue)

    def service_of_topics(self, stream: str) -> str | None:
        """Return the service whose topics are in this stream; None if it is not one of topics."""
        return self._owner("TOPIC", stream)

    def service_of_casts(self, stream: str) -> str | None:
        """Return the service that `cast_stream` makes this name for; None if there is none."""
        return self._owner("CAST", stream)

    def _owner(self, kind: str, stream: str) -> str | None:
        prefix = f"{self.upper}_{kind}_"
        if not stream.startswith(prefix):
            return None
        try:
            raw = _ESCAPE.sub(
                lambda found: bytes([int(found.group(1), 16)]), stream[len(prefix) :].encode()
            )
            service = raw.decode()
            return service if self._own_stream(kind, service) == stream else None
        except (NameRefused, UnicodeError):
            return None


def _short_enough(service: str, name: str) -> str:
    if len(name) > MAX_STREAM_NAME:
        raise NameRefused(
            f"service name {service[:20]!r}… takes {len(name)} characters in NATS, which allows "
            f"{MAX_STREAM_NAME}; use a shorter one of [a-z0-9_-]"
        )
    return name
