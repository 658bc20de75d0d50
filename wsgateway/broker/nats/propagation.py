"""When a subscription is in effect wherever one of our processes sends.

The server that we are connected to knows a subscription once it has answered a PING. It tells
the cluster's other servers in the background; what somebody sends from there may come too early
and is lost. So we send a probe behind the subscription, on the same routes, and wait until it
has reached every server to which a process of ours is connected. The servers themselves answer
it: NATS' message tracing (ADR-41, from 2.11 on) reports each server that a message passes, and
the first report lists the servers that it was forwarded to. So no other process's event loop
takes part, and we know how many reports to wait for.

A probe is forwarded to the servers with interest in its subject. Each connection therefore
subscribes to it, in a queue group named after its server: one message for each server, however
many processes there are. Nothing is delivered, since a probe is only traced.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from typing import Any

from wsgateway.broker.bus import Closable
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.connection import NatsConnection
from wsgateway.broker.shared import Shared
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.protocol.subjects import Subjects

__all__ = ["Propagation"]

logger = logging.getLogger("wsgateway.broker")

PROBE_TIMEOUT = 1.0
"""Seconds that a server has to report a probe; after that nobody waits for it until it reports
one. One that is dead or hangs can hold up a single `group_add`, and no sender of its own
gets a message through it either."""
NUMBER = "Ws-Probe"
CLIENT, ROUTER = 0, 1
"""Kinds of connections in trace events."""


class Propagation:
    """The way of one connection's subscriptions to the cluster's other servers.

    Args:
        connection: Its. Call everything in its loop.
        subjects: Names below the installation's prefix.
    """

    def __init__(self, connection: NatsConnection, subjects: Subjects) -> None:
        self._connection = connection
        self._subject = subjects.probe
        self._reports = subjects.process(f"probe-{secrets.token_hex(8)}")
        self._shared_probe = Shared(self.probe)
        self._interests: list[Closable] = []
        self._probes = 0
        self._current: _Probe | None = None
        self.silent: set[str] = set()
        """Names of servers that did not report a probe in time; nobody waits for them."""
        self._untraced = False  # the server does not report at all
        if connection.is_open:
            self._join()
        connection.on_open(self._join)
        connection.on_lost(self._leave)

    async def complete(self) -> None:
        """Return once every subscription made so far is in effect, wherever somebody sends.

        Concurrent calls share round trips.

        Raises:
            BrokerUnavailable: Not connected, or the connection was lost.
        """
        await self._connection.confirm()
        if self._interests and not self._untraced:
            await self._shared_probe()

    def _join(self) -> None:
        self._untraced = False
        self.silent.clear()
        if self._connection.server.is_clustered:
            self._interests = [
                self._connection.subscribe(
                    self._subject, _ignore, queue=self._connection.server.id
                ),
                self._connection.subscribe(self._reports, self.on_report),
            ]

    def _leave(self) -> None:
        # Not to be restored: the next server has another name
        for interest in self._interests:
            interest.close()
        self._interests = []
        if self._current is not None and not self._current.done.done():
            lost = BrokerUnavailable("the connection was lost before a subscription was in effect")
            self._current.done.set_exception(lost)

    async def probe(self) -> None:
        """Send a probe, and wait until every server that gets it has reported it."""
        self._probes += 1
        probe = self._current = _Probe(self._probes, self.silent)
        headers = {
            "Nats-Trace-Dest": self._reports,
            "Nats-Trace-Only": "true",
            NUMBER: str(probe.number),
        }
        self._connection.publish(self._subject, b"", hdrs.encode(headers))
        self._connection.send_now()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await probe.done
        except TimeoutError:
            self._give_up(probe)

    def _give_up(self, probe: _Probe) -> None:
        missing = probe.missing
        if missing is None:
            self._untraced = True
            logger.warning(
                "NATS at %s does not report traced messages, so group_add cannot wait until the "
                "cluster's other servers know a group. Allow publishing to %s.>",
                self._connection.address,
                self._reports.rpartition(".")[0],
            )
            return
        self.silent |= missing
        logger.warning(
            "NATS server %s does not report a probe within %s s, so group_add does not wait for it",
            ", ".join(sorted(missing)),
            PROBE_TIMEOUT,
        )

    def on_report(self, _s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
        """Note which server a probe has passed."""
        try:
            report = json.loads(data)
            server = report["server"]["name"]
            numbers = report["request"]["header"][NUMBER]
        except (ValueError, TypeError, KeyError):
            text = "ignored %d bytes on %s that are not a trace"
            logger.warning(text, len(data), self._reports, extra={"subject": self._reports})
            return
        self.silent.discard(server)
        if self._current is not None and numbers == [str(self._current.number)]:
            self._current.add(server, report)


class _Probe:
    """One probe on its way. Done once every server that got it has reported.

    Args:
        number: Which one.
        silent: Names of servers to wait for no longer.
    """

    def __init__(self, number: int, silent: set[str]) -> None:
        self.number = number
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._silent = silent
        self._forwarded: set[str] | None = None  # to whom, once our own server has said so
        self._reported: set[str] = set()

    def add(self, server: str, report: dict[str, Any]) -> None:
        events = report.get("events") or []
        self._reported.add(server)
        if events and events[0].get("kind") == CLIENT:  # it came from us
            self._forwarded = {
                event["name"]
                for event in events
                if event.get("kind") == ROUTER and event.get("type") == "eg" and "hop" in event
            }
        if self.missing == set() and not self.done.done():
            self.done.set_result(None)

    @property
    def missing(self) -> set[str] | None:
        """Who has not reported yet; None if we do not know who gets it."""
        if self._forwarded is None:
            return None
        return self._forwarded - self._reported - self._silent


def _ignore(_s: bytes, _r: bytes, _data: bytes, _h: bytes | None) -> None:
    """A probe is only traced; nothing comes."""
