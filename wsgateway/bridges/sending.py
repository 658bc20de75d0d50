"""Client to service: the handler that puts what a worker gets onto the bus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wsgateway.bridges.headers import (
    ATTEMPT_HEADER,
    ID_HEADER,
    OFFSET_HEADER,
    SERVICE_HEADER,
    USER_HEADER,
)
from wsgateway.bridges.outage import Outage, uncancelled
from wsgateway.broker.messages import SENDER_HEADER, write_sender
from wsgateway.exceptions import BusMisconfigured, BusUnavailable, RecordRefused
from wsgateway.protocol.frames import FRAME_HEADER
from wsgateway.protocol.subjects import sender_token
from wsgateway.services.policy import Policies, RetryPolicy
from wsgateway.services.registry import Service
from wsgateway.tracing import context_headers

if TYPE_CHECKING:
    from wsgateway.bridges.bus import Bus
    from wsgateway.bridges.config import Bridge
    from wsgateway.counters import BridgeCounters
    from wsgateway.services.message import Message

__all__ = [
    "Sending",
    "headers_of",
]


OURS = frozenset(
    name.lower()
    for name in (
        FRAME_HEADER,
        SERVICE_HEADER,
        USER_HEADER,
        SENDER_HEADER,
        ID_HEADER,
        OFFSET_HEADER,
        ATTEMPT_HEADER,
    )
)
"""Headers that say what the bridge knows, whatever a message's own say; in lower case."""


class Sending:
    """The handler of all services of one bridge.

    Args:
        bridge: The bridge.
        bus: Its bus, open in the running loop.
        counted: Counts what it does.
    """

    def __init__(self, bridge: Bridge, bus: Bus, counted: BridgeCounters) -> None:
        self._bridge = bridge
        self._bus = bus
        self._counted = counted
        self._ended = asyncio.Event()
        self._outage = Outage(f"bridge {bridge.name} waits to send", bridge.name)

    def service(self, name: str, *, has_topics: bool) -> Service:
        """Return the service that a worker runs."""
        # A next try would be refused as well
        policies: Policies = {RecordRefused: RetryPolicy(attempts=1)}
        concurrency = self._bridge.concurrency
        return Service(name, self, policies, concurrency, has_topics=has_topics, is_ours=True)

    @property
    def trouble(self) -> str:
        """Why a message waits for the bus; "" if none does."""
        return self._outage.reason

    async def end(self) -> None:
        """Return to the queue what the bus does not take, at once.

        A bus that is away is closed, so that nothing waits for it.
        """
        self._ended.set()
        if not self._bus.connected:
            await self._bus.close()

    async def __call__(self, message: Message) -> None:
        """Return once the bus has confirmed the message, however long that takes.

        Raises:
            RecordRefused: The bus can never take it.
            BusUnavailable: The process ends first.
        """
        self._counted.sending += 1
        try:
            await self._produce(message)
        except RecordRefused:
            self._counted.refused += 1
            raise
        finally:
            self._outage.over()
            self._counted.sending -= 1
        self._counted.sent += 1

    async def _produce(self, message: Message) -> None:
        headers = headers_of(message)
        token = sender_token(message.sender, message.service)
        attempt = 0
        while True:
            try:
                with uncancelled(BusUnavailable):
                    return await self._bus.produce(message.service, token, message.bytes, headers)
            except (BusUnavailable, BusMisconfigured) as exc:
                self._counted.send_failures += 1
                await self._outage.wait(attempt, exc, self._ended)
                if self._ended.is_set():
                    raise BusUnavailable(f"the bridge ends before the bus is back: {exc}") from exc
            attempt += 1


def headers_of(message: Message) -> dict[str, str]:
    """Return the headers that a service reads: those of the message, and what its subject says."""
    traced = context_headers()
    ours = OURS.union(map(str.lower, traced)) if traced else OURS
    headers = {
        name: value
        for name, value in message.headers.items()
        if (lower := name.lower()) not in ours and not lower.startswith("nats-")
    }
    headers[FRAME_HEADER] = message.frame.kind
    headers[SERVICE_HEADER] = message.service
    headers[USER_HEADER] = message.user_name
    headers[SENDER_HEADER] = write_sender(message.sender)
    headers[ID_HEADER] = message.id
    headers[OFFSET_HEADER] = str(message.offset)
    headers[ATTEMPT_HEADER] = str(message.deliveries)
    return headers | traced
