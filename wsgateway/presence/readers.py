"""Asking every gateway who reads a topic."""

from __future__ import annotations

import logging
from typing import Any

from wsgateway.broker.base import Broker
from wsgateway.broker.inquiry import Fields, ask_members
from wsgateway.exceptions import reason_of
from wsgateway.presence.paging import merge, size_of_name
from wsgateway.presence.results import Readers, number_of
from wsgateway.presence.users import GATEWAY
from wsgateway.protocol.subjects import Inbox, Topic

__all__ = ["find_readers", "size_of_reader"]

logger = logging.getLogger("wsgateway")


def size_of_reader(inbox: Inbox) -> int:
    """Return the bytes of JSON that a reader takes in an answer, at most."""
    return size_of_name(inbox.service) + size_of_name(inbox.user)


async def find_readers(broker: Broker, topic: Topic, after: Inbox | None, limit: int) -> Readers:
    """Return the first *limit* users after *after* who read a topic.

    There is one question to each gateway, which also tells who is silent. Gateways do not
    subscribe to anything for it, so a topic that nobody asks about costs nothing.

    Raises:
        BrokerError: The connection was lost, or the gateways are not known.
    """
    service, user = after or ("", "")
    request = {
        "ask": "readers",
        "service": topic.service,
        "name": topic.name,
        "after_service": service,
        "after_user": user,
        "limit": limit,
    }
    answers = await ask_members(broker, GATEWAY, request)
    parts, sockets, silent = [], 0, set(answers.silent)
    for id, answer in answers.by_id.items():
        try:
            held, count = _parse(answer), number_of(answer.get("sockets"))
        except (TypeError, ValueError) as exc:
            text = "cannot read the answer of gateway %s: %s"
            logger.warning(text, id, reason_of(exc), extra={"gateway": id})
            silent.add(id)
            continue
        parts.append((held, answer.get("more") is True))
        sockets += count
    users, next_after = merge(parts, limit)
    return Readers(users, sockets, next_after, tuple(sorted(silent)))


def _parse(answer: Fields) -> dict[Inbox, int]:
    """Return the sockets of each user that a gateway lists.

    Raises:
        TypeError, ValueError: It is not what a gateway of this version says.
    """
    found: Any = answer.get("readers")
    held = {}
    for service, user, sockets in found:
        if not (isinstance(service, str) and isinstance(user, str)):
            raise ValueError("a name is not text")
        held[Inbox(service, user)] = number_of(sockets)
    return held
