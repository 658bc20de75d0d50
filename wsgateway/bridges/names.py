"""What topics, exchanges, queues and keys are called on a bus. Pure.

Keys hold the same tokens as NATS subjects, see `wsgateway.protocol.subjects`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from wsgateway.bridges.bus import Target
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Address, Inbox, Topic, decode_token, encode_token

__all__ = [
    "MAX_KAFKA_TOPIC",
    "MAX_ROUTING_KEY",
    "Names",
    "Source",
    "carry_flaw",
    "key_of",
    "parse_key",
]

MAX_KAFKA_TOPIC = 249
"""Characters of the longest name of a topic that Kafka takes."""
MAX_ROUTING_KEY = 255
"""Bytes of the longest routing key that AMQP can hold."""
_KAFKA = re.compile(r"[A-Za-z0-9._-]+\Z")
_ESCAPE = re.compile(r"=[0-9A-Fa-f]{2}")


class Source(NamedTuple):
    """What a Kafka topic holds that services produce into.

    Attributes:
        target: Whether its records belong in inboxes or in topics.
        service: The service that its name says; None if the records' keys say it.
    """

    target: Target
    service: str | None


class Names:
    """The names on a bus below one prefix.

    Args:
        prefix: ``WSGATEWAY_PREFIX``.

    Attributes:
        send: The AMQP exchange for what clients send.
        recv: The exchange, or Kafka topic, for inboxes.
        topic: The same for topics.
        dead: Where records go that cannot be delivered.
    """

    def __init__(self, prefix: str) -> None:
        self.send = f"{prefix}.send"
        self.recv = f"{prefix}.recv"
        self.topic = f"{prefix}.topic"
        self.dead = f"{prefix}.dead"

    def send_topic(self, service: str) -> str:
        """Return the Kafka topic that holds what clients send to *service*."""
        return f"{self.send}.{encode_token(service)}"

    def sources(self, services: tuple[str, ...]) -> dict[str, Source]:
        """Return the Kafka topics that services may produce into, by name.

        The first two are always there; a topic for one service is optional.
        """
        found = {self.recv: Source("inbox", None), self.topic: Source("topic", None)}
        for service in services:
            token = encode_token(service)
            found[f"{self.recv}.{token}"] = Source("inbox", service)
            found[f"{self.topic}.{token}"] = Source("topic", service)
        return found


def key_of(service: str, token: str) -> str:
    """Return the key, or routing key, of what a user sends to *service*.

    Args:
        service: Its name.
        token: The user as one token.
    """
    return f"{encode_token(service)}.{token}"


def parse_key(target: Target, service: str | None, key: str) -> Address:
    """Return where the message of a record belongs.

    Args:
        target: See `Record`.
        service: The service that the record's topic names; None if its key does.
        key: The record's.

    Raises:
        NameRefused: The key names no inbox or topic; the text says how to write it.
    """
    last = "user" if target == "inbox" else "name"
    tokens = key.split(".")
    if service is None:
        if len(tokens) != 2:
            raise NameRefused(
                f"key {_shown(key)} is not <service>.<{last}>; write one dot, and every other "
                "character besides [A-Za-z0-9_-] as =XX"
            )
        service = _decoded(tokens[0])
    elif len(tokens) != 1:
        raise NameRefused(
            f"key {_shown(key)} is not one token; write the {last} alone, with every character "
            f"besides [A-Za-z0-9_-] as =XX{_suggestion(key)}"
        )
    name = _decoded(tokens[-1])
    return Inbox(service, name) if target == "inbox" else Topic(service, name)


def _decoded(token: str) -> str:
    try:
        name = decode_token(token)
    except NameRefused as exc:
        raise NameRefused(
            f"key holds {_shown(token)}, which is not an escaped name{_suggestion(token)}"
        ) from exc
    encode_token(name)  # refuses what is too long
    return name


def _suggestion(name: str) -> str:
    upper = _ESCAPE.sub(lambda found: found[0].upper(), name)
    try:
        return f"; write its digits in upper case: {encode_token(decode_token(upper))!r}"
    except NameRefused:
        pass
    try:
        return f"; for that name, write {encode_token(name)!r}"
    except NameRefused:
        return ""


def _shown(key: str) -> str:
    return repr(key) if len(key) <= 80 else f"{key[:80]!r}… ({len(key)} characters)"


def carry_flaw(bus: str, prefix: str, service: str) -> str:
    """Return why a bus cannot carry a service of this name; "" if it can.

    Args:
        bus: ``kafka`` or ``amqp``.
        prefix: ``WSGATEWAY_PREFIX``.
        service: The service's name.
    """
    try:
        token = encode_token(service)
    except NameRefused as exc:
        return str(exc)
    if bus == "kafka":
        topic = Names(prefix).send_topic(service)
        if not _KAFKA.match(topic):
            return (
                f"Kafka cannot have the topic {topic!r}: name the service with [A-Za-z0-9_-] only"
            )
        if len(topic) > MAX_KAFKA_TOPIC:
            return (
                f"the Kafka topic of service {service[:40]!r}… has {len(topic)} characters, which "
                f"exceeds {MAX_KAFKA_TOPIC}; choose a shorter name"
            )
    elif len(token) > MAX_ROUTING_KEY - 2:
        return (
            f"routing keys of service {service[:40]!r}… exceed {MAX_ROUTING_KEY} bytes; choose a "
            "shorter name"
        )
    return ""
