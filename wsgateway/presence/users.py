"""Asking about users: the gateways that hold one answer on the user's subject."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from typing import Any

from wsgateway.broker.base import Broker
from wsgateway.broker.inquiry import Fields, Inquiry, encode
from wsgateway.exceptions import reason_of
from wsgateway.presence.results import Connection, Connections, Disconnected, number_of
from wsgateway.protocol.subjects import Inbox

__all__ = [
    "GATEWAY",
    "RECHECK",
    "close_sockets",
    "find_connections",
    "find_online",
    "recheck_watches",
]

logger = logging.getLogger("wsgateway")

GATEWAY = "gateway"
"""What gateways are in the roster."""
RECHECK = "watches"
"""Where gateways are told that the right to watch somebody may have ended."""
AT_ONCE = 0.05
"""Seconds that answers have before it is asked which gateways there are: usually, there is no need
to know, because the answers say enough."""


class _Lookup:
    """The same question about each of some users.

    Args:
        inquiry: Not used for anything yet.
        broker: Names the subjects.
        inboxes: The users.
        request: The question.
        decides: Says whether an answer is enough for its user; None: each gateway's counts.
    """

    def __init__(
        self,
        inquiry: Inquiry,
        broker: Broker,
        inboxes: Iterable[Inbox],
        request: Fields,
        decides: Callable[[Fields], bool] = lambda answer: False,
    ) -> None:
        self.answers: dict[Inbox, list[Fields]] = {inbox: [] for inbox in inboxes}
        self.undecided = set(self.answers)
        """Users of whom more answers could matter; nobody holds the others, or one was enough."""
        self.unheard = set(self.answers)
        """Users of whom nothing has come yet."""
        self._inquiry = inquiry
        self._decides = decides
        payload = encode(request)
        for inbox in self.answers:
            on_answer = partial(self._on_answer, inbox)
            on_nobody = partial(self._on_nobody, inbox)
            inquiry.ask(broker.subjects.conn(inbox), payload, on_answer, on_nobody)

    def _on_answer(self, inbox: Inbox, answer: Fields) -> None:
        self.answers[inbox].append(answer)
        self.unheard.discard(inbox)
        if self._decides(answer):
            self.undecided.discard(inbox)

    def _on_nobody(self, inbox: Inbox) -> None:
        self.unheard.discard(inbox)
        self.undecided.discard(inbox)

    async def complete(self) -> tuple[str, ...]:
        """Wait for every gateway, unless all users are decided before; return who is silent."""
        answers = await self._inquiry.ask_members({"ask": "ping"}, lambda: not self.undecided)
        return answers.silent


async def find_online(broker: Broker, inboxes: Iterable[Inbox]) -> dict[Inbox, bool | None]:
    """Say of each user whether a gateway holds an open socket; None: one is silent.

    Raises:
        BrokerError: The connection was lost, or the gateways are not known.
    """
    silent: tuple[str, ...] = ()
    with Inquiry(broker, GATEWAY) as inquiry:
        lookup = _Lookup(inquiry, broker, inboxes, {"ask": "count"}, _is_open)
        await inquiry.until(lambda: not lookup.unheard, AT_ONCE)
        if lookup.undecided:
            silent = await lookup.complete()
    if silent and lookup.undecided:
        logger.info("presence is unknown while gateways are silent: %s", ", ".join(silent))
    unknown = None if silent else False
    return {
        inbox: any(map(_is_open, answers)) or (unknown if inbox in lookup.undecided else False)
        for inbox, answers in lookup.answers.items()
    }


def _is_open(answer: Fields) -> bool:
    return bool(answer.get("sockets"))


async def find_connections(broker: Broker, inboxes: Iterable[Inbox]) -> dict[Inbox, Connections]:
    """Return the open sockets of each user.

    Raises:
        BrokerError: The connection was lost, or the gateways are not known.
    """
    with Inquiry(broker, GATEWAY) as inquiry:
        lookup = _Lookup(inquiry, broker, inboxes, {"ask": "connections"})
        silent = await lookup.complete()
    return {
        inbox: Connections(
            sorted(_parse(inbox, answers), key=attrgetter("since", "id")),
            silent if inbox in lookup.undecided else (),
        )
        for inbox, answers in lookup.answers.items()
    }


def _parse(inbox: Inbox, answers: Iterable[Fields]) -> Iterable[Connection]:
    """Yield the sockets that *answers* list; one that cannot be read is skipped and logged."""
    for answer in answers:
        found: Any = answer.get("connections")
        for fields in found if isinstance(found, list) else ():
            try:
                yield Connection.parse(inbox, str(answer.get("gateway")), fields)
            except (AttributeError, TypeError, ValueError) as exc:
                text = "skipped what a gateway says of a socket: %s"
                logger.warning(text, reason_of(exc), extra=_log_fields(inbox, answer))


async def close_sockets(broker: Broker, inbox: Inbox, request: Fields) -> Disconnected:
    """Have every gateway close sockets of a user.

    Raises:
        BrokerError: The connection was lost, or the gateways are not known.
    """
    with Inquiry(broker, GATEWAY) as inquiry:
        lookup = _Lookup(inquiry, broker, [inbox], request)
        silent = await lookup.complete()
    closed = 0
    for answer in lookup.answers[inbox]:
        try:
            closed += number_of(answer.get("closed"))
        except ValueError as exc:
            text = "skipped what a gateway says of closing sockets: %s"
            logger.warning(text, reason_of(exc), extra=_log_fields(inbox, answer))
    return Disconnected(closed, silent if lookup.undecided else ())


async def recheck_watches(broker: Broker, inbox: Inbox) -> None:
    """Have gateways ask again who may watch *inbox*'s user, and whom that user may watch.

    Raises:
        BrokerError: They could not be told.
    """
    broker.broadcast(RECHECK, json.dumps(inbox).encode())
    await broker.bus.confirm()


def _log_fields(inbox: Inbox, answer: Fields) -> dict[str, object]:
    return {"service": inbox.service, "user": inbox.user, "gateway": str(answer.get("gateway"))}
