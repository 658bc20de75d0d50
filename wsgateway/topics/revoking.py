"""Ends rights to topics on every gateway."""

from __future__ import annotations

import time

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Action
from wsgateway.protocol.subjects import encode_token
from wsgateway.topics.marks import INBOX, Mark, keep_for
from wsgateway.topics.users import User, parse_user, require_kind

__all__ = ["arecheck", "arevoke", "recheck", "revoke"]


async def arevoke(service: str, name: str | None, *, user: User | None = None) -> None:
    """End subscriptions to a topic on every gateway, and void the tokens made for it so far.

    Clients are told within a second. One that subscribes again is let in if ``allow`` says so, so
    change what ``allow`` looks at first, and call this after the commit.

    Args:
        service: The topic's service.
        name: The topic's name; None: every topic of the service.
        user: Whose right: a user's name, whichever service their sockets belong to; a Django user;
            or a pair of service and name, for the sockets of that service only. None: everybody's.

    Raises:
        TopicsUnknown: No process declares topics of *service*.
        NameRefused: No topic or user can have this name.
        TypeError: *user* is something else.
        BrokerUnavailable: It may not be stored. Call it again.
    """
    await runtime.call(_marking(service, name, user, ask=False))


def revoke(service: str, name: str | None, *, user: User | None = None) -> None:
    """Do what `arevoke` does, from synchronous code."""
    runtime.call_sync(_marking(service, name, user, ask=False), name="revoke")


async def arecheck(service: str, name: str | None, *, user: User | None = None) -> None:
    """Have ``allow`` asked again about subscriptions to a topic, on every gateway.

    Those that it does not allow any more end; the others go on, and notice nothing. Tokens made
    so far are void.

    Args:
        service: The topic's service.
        name: The topic's name; None: every topic of the service.
        user: Whose right, as for `arevoke`; None: everybody's.

    Raises:
        TopicsUnknown: No process declares topics of *service*.
        NameRefused: No topic or user can have this name.
        TypeError: *user* is something else.
        BrokerUnavailable: It may not be stored. Call it again.
    """
    await runtime.call(_marking(service, name, user, ask=True))


def recheck(service: str, name: str | None, *, user: User | None = None) -> None:
    """Do what `arecheck` does, from synchronous code."""
    runtime.call_sync(_marking(service, name, user, ask=True), name="recheck")


def _marking(service: str, name: str | None, user: User | None, *, ask: bool) -> Action[None]:
    encode_token(service)
    if name is not None:
        encode_token(name)
    whose, at = (None, None) if user is None else parse_user(user)
    mark = Mark(service, name, whose, at, time.time(), ask)

    async def store(broker: Broker) -> None:
        await require_kind(broker, service)
        await broker.publish(INBOX, mark.encode(), ttl=keep_for(), reserved=True)

    return store
