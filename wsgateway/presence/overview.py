"""Asking every gateway: who is online, how many there are, what the gateways do."""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Mapping
from functools import partial
from operator import attrgetter

from wsgateway.broker.base import Broker
from wsgateway.broker.inquiry import PATIENCE, Answers, Fields, Inquiry, ask_members, encode
from wsgateway.exceptions import BrokerUnavailable, reason_of
from wsgateway.presence.paging import merge
from wsgateway.presence.results import Counts, Gateway, Gateways, Page, numbers_of
from wsgateway.presence.users import GATEWAY

__all__ = [
    "DIGEST",
    "MAX_PARTS",
    "count",
    "drain_gateway",
    "find_gateways",
    "list_users",
]

logger = logging.getLogger("wsgateway")

DIGEST = 8
"""Bytes that stand for a user's name where names are counted. With a million users, two of them
share theirs in one of 40 million counts."""
PART = 30_000
"""Digests in one answer; half of them if NATS takes smaller messages only, and so on."""
MAX_PARTS = 1000


async def list_users(broker: Broker, service: str, after: str | None, limit: int) -> Page:
    """Return the first *limit* users of a service whose name comes after *after*.

    Raises:
        BrokerError: The connection was lost, or the gateways are not known.
    """
    request = {"ask": "online", "service": service, "after": after or "", "limit": limit}
    answers = _readable(await ask_members(broker, GATEWAY, request), "users")
    found = [(answer["users"], bool(answer.get("more"))) for answer in answers.by_id.values()]
    users, next_after = merge(found, limit)
    return Page(users, next_after, answers.silent)


async def count(broker: Broker) -> Counts:
    """Return how many sockets are open and how many users have one, by service.

    Raises:
        BrokerError: The connection was lost, or the gateways are not known.
    """
    found = await ask_members(broker, GATEWAY, {"ask": "counts"})
    answers = _readable(found, "sockets", "users")
    sockets: Counter[str] = Counter()
    holders: dict[str, dict[str, int]] = {}  # service -> gateway -> users
    for id, answer in answers.by_id.items():
        sockets.update(answer["sockets"])
        for service, held in answer["users"].items():
            holders.setdefault(service, {})[id] = held
    shared = {service: found for service, found in holders.items() if len(found) > 1}
    distinct, gone_silent = await _distinct(broker, shared)
    users = {service: sum(found.values()) for service, found in holders.items()} | distinct
    silent = gone_silent.union(answers.silent)
    return Counts(dict(sockets), users, len(answers.by_id), tuple(sorted(silent)))


async def _distinct(
    broker: Broker, holders: Mapping[str, Mapping[str, int]]
) -> tuple[dict[str, int], set[str]]:
    """Count users that several gateways hold once; return that, and who was silent.

    Args:
        broker: What carries the questions.
        holders: Services, and how many users each gateway has.
    """
    digests: dict[str, set[bytes]] = {service: set() for service in holders}
    waiting: set[tuple[str, str, int]] = set()
    size = max(1, min(PART, broker.bus.max_payload // (4 * DIGEST)))

    def take(service: str, question: tuple[str, str, int], answer: Fields) -> None:
        waiting.discard(question)
        try:
            data = base64.b64decode(str(answer.get("digests")), validate=True)
        except ValueError as exc:
            log_fields = {"service": service, "gateway": question[1]}
            text = "skipped what a gateway says of its users: %s"
            logger.warning(text, reason_of(exc), extra=log_fields)
            return
        digests[service].update(data[at : at + DIGEST] for at in range(0, len(data), DIGEST))

    with Inquiry(broker, GATEWAY) as inquiry:
        for service, gateways in holders.items():
            for id, users in gateways.items():
                parts = min(1 + users // size, MAX_PARTS)
                for part in range(parts):
                    question = (service, id, part)
                    request = {"ask": "digests", "service": service, "part": part, "parts": parts}
                    waiting.add(question)
                    inquiry.ask(
                        broker.subjects.member(GATEWAY, id),
                        encode(request),
                        partial(take, service, question),
                        partial(waiting.discard, question),
                    )
        if waiting:
            await inquiry.until(lambda: not waiting)
    counted = {service: len(found) for service, found in digests.items()}
    return counted, {id for _, id, _ in waiting}


async def find_gateways(broker: Broker) -> Gateways:
    """Return what each gateway says of itself.

    Raises:
        BrokerError: The connection was lost, or the gateways are not known.
    """
    answers = await ask_members(broker, GATEWAY, {"ask": "info"})
    found, silent = [], set(answers.silent)
    for id, answer in answers.by_id.items():
        try:
            found.append(Gateway.parse(id, answer))
        except (OverflowError, TypeError, ValueError) as exc:
            text = "cannot read what gateway %s says of itself: %s"
            logger.warning(text, id, reason_of(exc), extra={"gateway": id})
            silent.add(id)
    return Gateways(sorted(found, key=attrgetter("id")), sorted(silent))


async def drain_gateway(broker: Broker, id: str) -> bool:
    """Have a gateway let its sockets go; return whether it exists.

    Raises:
        BrokerUnavailable: It does not answer.
    """
    came: list[bool] = []
    with Inquiry(broker, GATEWAY) as inquiry:
        inquiry.ask(
            broker.subjects.member(GATEWAY, id),
            encode({"ask": "drain"}),
            lambda answer: came.append(answer.get("draining") is True),
            lambda: came.append(False),
        )
        await inquiry.until(lambda: came)
    if not came:
        raise BrokerUnavailable(
            f"gateway {id} did not answer within {PATIENCE:g} s; it drains if it wakes up"
        )
    return came[0]


def _readable(answers: Answers, *names: str) -> Answers:
    """Return *answers*; one in which *names* are not all objects of numbers counts as silence."""
    found: dict[str, Fields] = {}
    silent = set(answers.silent)
    for id, answer in answers.by_id.items():
        try:
            found[id] = {**answer, **{name: numbers_of(answer.get(name)) for name in names}}
        except ValueError as exc:
            text = "cannot read the answer of gateway %s: %s"
            logger.warning(text, id, reason_of(exc), extra={"gateway": id})
            silent.add(id)
    return Answers(found, tuple(sorted(silent)))
