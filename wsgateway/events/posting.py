"""Posts events to a webhook: one user's in order, apart from the receivers of signals."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from django.dispatch import Signal

from wsgateway import counters
from wsgateway.events.signalling import Right, Signalling
from wsgateway.services.policy import RetryPolicy
from wsgateway.signals import socket_connected, socket_disconnected, user_offline, user_online
from wsgateway.webhooks.addresses import AddressRefused
from wsgateway.webhooks.sender import PostFailed, Sender
from wsgateway.webhooks.verdicts import TryAgain, judge

if TYPE_CHECKING:
    from wsgateway.webhooks.config import EventsWebhook

__all__ = ["Posting"]

logger = logging.getLogger("wsgateway.events")

TYPES = {
    socket_connected: "socket.connected",
    socket_disconnected: "socket.disconnected",
    user_online: "user.online",
    user_offline: "user.offline",
}
ATTEMPTS = 3
"""Tries for an event, unless the setting says otherwise."""
MAX_ANSWER = 10_000
"""Bytes of an answer that are read; nobody looks at its body."""
LONGEST_PAUSE = 60.0
"""Seconds that ``Retry-After`` may ask for: the user's later events wait, too."""


class _Failure(NamedTuple):
    """Why an event could not be posted.

    Attributes:
        reason: For the log.
        after: Seconds until the next try, as the endpoint asks; None: it does not.
        is_passing: Whether another try may be of use.
    """

    reason: str
    after: float | None = None
    is_passing: bool = True


class Posting(Signalling):
    """Posts an event as `Signalling` sends a signal. An event that cannot be posted is logged.

    Args:
        right: See `Signalling`.
        webhook: Where they go, and which.
    """

    too_slow = "the webhook for events is too slow"

    def __init__(self, right: Right, webhook: EventsWebhook) -> None:
        super().__init__(right)
        self._webhook = webhook
        self._policy = RetryPolicy(**{"attempts": ATTEMPTS, **webhook.retry})
        self._sender: Sender | None = None

    def wants(self, signal: Signal) -> bool:
        """Say whether the setting lists it."""
        return TYPES[signal] in self._webhook.events

    def _note_waiting(self, waiting: int) -> None:
        self._waiting = waiting

    def _count(self, outcome: str) -> None:
        self.counts[outcome] += 1
        counters.events.posts[outcome] += 1

    async def stop(self, timeout: float) -> None:
        """Finish what waits, for *timeout* seconds at most."""
        await super().stop(timeout)
        if self._sender is not None:
            await self._sender.close()

    async def deliver(self, signal: Signal, arguments: Mapping[str, Any], term: int) -> bool:
        """Post an event, several times if it fails; return whether the endpoint has it.

        It is not tried again once another process has the right to post events: that one's events
        are later, and this one would arrive behind them.
        """
        if self._sender is None:
            self._sender = Sender(self._webhook.endpoint, MAX_ANSWER)
        id, body = f"evt_{uuid.uuid4().hex}", _body_of(signal, arguments)
        attempts = self._policy.attempts or ATTEMPTS
        for attempt in range(1, attempts + 1):
            failure = await self._post(self._sender, id, body)
            if failure is None:
                return True
            ends = not failure.is_passing or attempt == attempts
            if not ends:
                pause = max(self._policy.pause(attempt), failure.after or 0.0)
                await asyncio.sleep(min(pause, LONGEST_PAUSE))
                ends = not await self._right.settled(term)
            if ends:
                logger.error(
                    "cannot post an event, %s, after %d tries: %s",
                    TYPES[signal],
                    attempt,
                    failure.reason,
                    extra={"service": arguments["service"], "user": arguments["user"]},
                )
                break
        return False

    async def _post(self, sender: Sender, id: str, body: bytes) -> _Failure | None:
        """Post it once; return why it failed, or None."""
        try:
            answer = await sender.post(id, body)
        except (PostFailed, AddressRefused) as exc:
            return _Failure(str(exc))
        if 200 <= answer.status < 300:
            return None
        verdict, origin = judge(answer, time.time()), self._webhook.endpoint.origin
        if isinstance(verdict, TryAgain):
            return _Failure(f"{origin}: {verdict.reason}", verdict.after)
        return _Failure(f"{origin}: it answered {answer.status}", is_passing=False)


def _body_of(signal: Signal, arguments: Mapping[str, Any]) -> bytes:
    fields = {"type": TYPES[signal], **arguments}
    text = json.dumps(fields, ensure_ascii=False, default=_time)
    return text.encode()


def _time(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds")
