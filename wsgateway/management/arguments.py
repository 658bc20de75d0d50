"""Arguments that several commands take, and what they name."""

from __future__ import annotations

import math
import threading
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable

from django.core.management.base import CommandError
from django.db import connections

from wsgateway.broker.base import Broker
from wsgateway.declared import TopicKind
from wsgateway.exceptions import ServiceUnknown
from wsgateway.management.exits import Exit
from wsgateway.protocol.subjects import Address, Inbox, Topic

__all__ = [
    "add_address",
    "add_inbox",
    "address_of",
    "count",
    "database",
    "described",
    "has_topics",
    "page",
    "require_complete",
    "require_users",
    "seconds",
    "stored_address_of",
]

MAX_PAGE = 1000


def add_inbox(parser: ArgumentParser) -> None:
    """Define whose inbox it is about."""
    parser.add_argument("service", metavar="SERVICE", help="a service that exists")
    parser.add_argument("user", metavar="USER", help="the user's name in that service")


def add_address(parser: ArgumentParser) -> None:
    """Define whose inbox, or which topic, it is about."""
    parser.add_argument("service", metavar="SERVICE", help="a service that exists")
    parser.add_argument(
        "user", metavar="NAME", help="the user's name in that service, or the topic's"
    )


async def address_of(broker: Broker, service: str, name: str) -> Address:
    """Return what *name* is within a service.

    Raises:
        ServiceUnknown: Nobody declares the service.
    """
    address = await broker.address_of(service, name)
    if isinstance(address, Inbox) and not await broker.service_exists(service):
        raise ServiceUnknown(service, broker.service_names | broker.topic_names)
    return address


async def stored_address_of(broker: Broker, service: str, name: str) -> Address:
    """Do the same, for what is stored.

    Raises:
        CommandError: It is an ephemeral topic.
        ServiceUnknown: Nobody declares the service.
    """
    address = await address_of(broker, service, name)
    if isinstance(address, Topic) and await broker.topics_of(service) is TopicKind.EPHEMERAL:
        text = f"topics of {service!r} are ephemeral: nothing is stored"
        raise CommandError(text, returncode=Exit.UNKNOWN)
    return address


def described(address: Address) -> str:
    """Return what an address is, for a message."""
    if isinstance(address, Topic):
        return f"the topic {str(address)!r}"
    return f"the inbox of {address.user!r} in {address.service!r}"


def count(text: str) -> int:
    """Take a number of 0 or more, such as an offset."""
    if not text.isdecimal() or len(text) > 18:
        raise ArgumentTypeError(f"{text[:40]!r} is not a whole number of 0 or more")
    return int(text)


def seconds(text: str) -> float:
    """Take how long to wait."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= threading.TIMEOUT_MAX:
        raise ArgumentTypeError(f"{text[:40]!r} is not a number of seconds, 0 or more")
    return number


def database(text: str) -> str:
    """Take the alias of a database."""
    if text not in connections:
        known = ", ".join(connections)
        raise ArgumentTypeError(f"{text[:40]!r} is not in DATABASES, which has {known}")
    return text


def require_complete(silent: Iterable[str]) -> None:
    """Fail, after a result was printed, if somebody is missing from it.

    Raises:
        CommandError: Gateways or workers did not answer.
    """
    names = sorted(silent)
    if names:
        raise CommandError(
            f"no answer from {', '.join(names)}, so the result may be incomplete; ask again",
            returncode=Exit.INCOMPLETE,
        )


def page(text: str) -> int:
    """Take how many messages to show, as many as the broker reads at once."""
    number = count(text)
    if number > MAX_PAGE:
        raise ArgumentTypeError(f"{number} is more than {MAX_PAGE}")
    return number


async def require_users(broker: Broker, service: str) -> None:
    """Refuse a name that is probably misspelt.

    Raises:
        ServiceUnknown: Nobody declares it.
        CommandError: It has topics.
    """
    if await has_topics(broker, service):
        text = f"service {service!r} has topics, not users; name the service of the sockets"
        raise CommandError(text, returncode=Exit.UNKNOWN)


async def has_topics(broker: Broker, service: str) -> bool:
    """Say whether a service has topics, and not users.

    Raises:
        ServiceUnknown: Nobody declares it.
    """
    if await broker.service_exists(service):
        return False
    if await broker.topics_of(service):
        return True
    raise ServiceUnknown(service, broker.service_names | broker.topic_names)
