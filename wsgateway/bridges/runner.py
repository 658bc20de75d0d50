"""What ``runbridge`` runs: the workers and the receiving side of its bridges."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured

from wsgateway import counters, declared
from wsgateway.bridges.buses import make_bus
from wsgateway.bridges.config import BUSES
from wsgateway.bridges.outage import Outage
from wsgateway.bridges.receiving import Receiving
from wsgateway.bridges.sending import Sending
from wsgateway.declared import declared_services
from wsgateway.exceptions import BusMisconfigured
from wsgateway.services.registry import bridge_flaws
from wsgateway.services.runner import Companion, Runner

if TYPE_CHECKING:
    from wsgateway.bridges.bus import Bus
    from wsgateway.bridges.config import Bridge
    from wsgateway.broker.base import Broker
    from wsgateway.services.registry import Service
    from wsgateway.services.runner import Say

__all__ = ["Running", "bridges_to_run", "make_runner"]


def bridges_to_run(names: list[str]) -> list[Bridge]:
    """Return the bridges with these *names*; without any, all.

    Raises:
        LookupError: No bridge has that name, or ``WSGATEWAY_SERVICES`` leaves out a service.
        ImproperlyConfigured: Something else handles a service of one, or the bus cannot carry it.
    """
    declared.discover()
    bridges = declared.bridges()
    unknown = [name for name in names if name not in bridges]
    if unknown or not bridges:
        known = ", ".join(bridges) or "none"
        name = f"no bridge {unknown[0]!r}" if unknown else "no bridge"
        raise LookupError(f"{name} in WSGATEWAY_BRIDGES; known: {known}")
    found = [bridges[name] for name in dict.fromkeys(names or bridges)]
    ours = declared_services()
    for bridge in found:
        for flaw in bridge_flaws(bridge):
            raise ImproperlyConfigured(flaw)
        for service in bridge.services:
            if not (ours.is_open or service in ours.services or service in declared.topics):
                raise LookupError(
                    f"WSGATEWAY_SERVICES does not list {service!r} of the bridge {bridge.name!r}, "
                    "so no client can reach it; add it"
                )
    return found


def make_runner(bridges: list[Bridge], ready_file: str | None, say: Say) -> Runner:
    """Return what runs *bridges* until it is told to end.

    Args:
        bridges: Which ones.
        ready_file: Created once all of them carry messages, removed at the end.
        say: Tells the operator.

    Raises:
        ImproperlyConfigured: The package of a bus is missing.
    """
    running = [Running(bridge, make_bus(bridge), say) for bridge in bridges]
    services = [service for each in running for service in each.services()]
    return Runner(services, None, ready_file, say, running)


class Running(Companion):
    """One bridge in this process.

    Args:
        bridge: The bridge.
        bus: Its bus, not open yet.
        say: Tells the operator.
    """

    def __init__(self, bridge: Bridge, bus: Bus, say: Say) -> None:
        self._bridge = bridge
        self._bus = bus
        self._say = say
        self._counted = counted = counters.bridge(bridge.name)
        self._sending = Sending(bridge, bus, counted)
        self._receiving: Receiving | None = None  # from `open`
        self._ended = asyncio.Event()
        self._starting = Outage(f"bridge {bridge.name} cannot start", bridge.name)

    def services(self) -> list[Service]:
        """Return what workers run: the services whose clients' messages go to the bus."""
        if not self._bridge.sends:
            return []
        return [
            self._sending.service(name, has_topics=name in declared.topics)
            for name in self._bridge.services
        ]

    async def open(self, broker: Broker) -> None:
        """Begin to carry records."""
        self._counted.bus = f"{BUSES[self._bridge.bus]} at {self._bridge.where}"
        self._counted.connected = lambda: self._bus.connected
        self._counted.trouble = self._trouble
        await self._bus.open()
        if self._bridge.receives:
            self._receiving = Receiving(self._bridge, self._bus, broker, self._counted)
            self._receiving.start()

    async def ready(self) -> None:
        """Wait until the bus has all that the bridge needs, and say so."""
        attempt = 0
        while not self._ended.is_set():
            try:
                await self._bus.ready()
            except BusMisconfigured as exc:
                await self._starting.wait(attempt, exc, self._ended)
                attempt += 1
            else:
                self._starting.over()
                text = f"{self._bridge.name}: connected to {self._bridge.where}"
                self._say(text, event="connected", bridge=self._bridge.name)
                return

    def _trouble(self) -> str:
        """Return why the bridge does not carry everything; "" if it does."""
        receiving = self._receiving.trouble if self._receiving else ""
        return self._bus.trouble or self._starting.reason or self._sending.trouble or receiving

    async def stop(self, timeout: float) -> None:
        """Finish what is in flight, and let nothing wait for the bus."""
        self._ended.set()
        await self._sending.end()
        if self._receiving is not None:
            await self._receiving.stop(timeout)

    async def close(self) -> None:
        """Disconnect."""
        await self._bus.close()
        counts = {
            "sent": self._counted.sent,
            "refused": self._counted.refused,
            "received": self._counted.received,
            "set aside": self._counted.set_aside,
        }
        text = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        text = f"{self._bridge.name}: ended ({text or 'no records'})"
        self._say(text, event="ended", bridge=self._bridge.name, counts=counts)
