"""Turns gateways' events into signals, and finds out what no event has said.

Several runners may run side by side. All follow the events, and one, which has the lease, sends
signals; when it ends, another goes on from what it knows itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.dispatch import Signal

from wsgateway import counters
from wsgateway.broker import runtime
from wsgateway.broker.roster import new_member_id
from wsgateway.conf import settings
from wsgateway.events.posting import Posting
from wsgateway.events.reconciling import list_online
from wsgateway.events.signalling import Signalling
from wsgateway.exceptions import BrokerError, MalformedMessage, NameRefused, reason_of
from wsgateway.presence.users import find_online
from wsgateway.protocol.edges import RETRY, Edges
from wsgateway.protocol.events import CONNECTED, DISCONNECTED, SocketEvent, parse_event
from wsgateway.protocol.subjects import Inbox
from wsgateway.roll_call import RollCall
from wsgateway.signals import socket_connected, socket_disconnected, user_offline, user_online
from wsgateway.supervision import supervise
from wsgateway.webhooks.config import events_webhook_of

if TYPE_CHECKING:
    from wsgateway.broker.base import Broker
    from wsgateway.broker.lease import Lease
    from wsgateway.services.runner import Say

__all__ = ["EventRunner"]

logger = logging.getLogger("wsgateway.events")

LEASE = "events"
"""Names what one process does at a time."""
LOOK_FOR_LEASE = 0.5
"""Seconds between two looks whether the lease is free."""
RENEWALS = 5
"""How often the lease is renewed in the time after which it would end."""
RELEASE_WITHIN = 1.0
"""Seconds that handing over may take at the end."""
LOOK = 0.25
"""Seconds between two looks at who may have gone offline."""
RECONCILE = 60.0
"""Seconds after which everybody is listed anyway: an event may be lost."""
MAX_EARLY = 100_000
"""Events that may wait until it knows who is online; more are lost."""
BATCH = 500
"""Users that are asked about at once."""


class EventRunner:
    """Runs until `end`.

    Args:
        ready_file: Created once it knows who is online, removed at the end.
        say: Tells the operator.
    """

    _broker: Broker  # these four are set by `run`
    _lease: Lease
    _signalling: Signalling
    _outlets: list[Signalling]

    def __init__(self, ready_file: str | None, say: Say) -> None:
        self._ready_file = Path(ready_file) if ready_file else None
        self._say = say
        self._end = asyncio.Event()
        self._edges = Edges(settings.OFFLINE_GRACE)
        self._early: list[tuple[Inbox, SocketEvent]] | None = []  # until it knows who is online
        self._left_at: dict[Inbox, datetime] = {}  # when those who may be offline were seen last
        self._doubts = asyncio.Event()  # whether those who are online still are
        self._doubts.set()
        self._active = False  # had the lease when last looked
        self._looked = asyncio.Event()  # set once it has looked
        self._renew = asyncio.Event()  # to be looked at now
        self._failure: OSError | None = None  # why it cannot go on

    @property
    def ending(self) -> bool:
        """Whether `end` was called."""
        return self._end.is_set()

    def end(self) -> None:
        """Let `run` return; from its loop."""
        self._end.set()

    async def run(self) -> None:
        """Run until `end`; then finish what is being sent, within ``CLOSE_TIMEOUT``.

        Raises:
            BrokerMisconfigured: The settings name no usable broker.
            OSError: The ready file cannot be made.
        """
        if self._ready_file is not None:  # of a process that was killed, in the same container
            self._ready_file.unlink(missing_ok=True)
        connection = runtime.own()
        connection.kept, self._broker = True, connection.broker
        await connection.open()
        id = new_member_id()
        self._lease = self._broker.lease(LEASE, id)
        self._signalling = Signalling(self._lease)
        self._outlets = [self._signalling]
        if options := settings.EVENTS_WEBHOOK:
            self._outlets.append(Posting(self._lease, events_webhook_of(options)))
        for outlet in self._outlets:
            outlet.start()
        self._broker.on_lost(self._lease.drop)
        self._broker.on_ready(self._on_ready)
        subject = self._broker.subjects.all_of("event")
        subscription = self._broker.bus.subscribe(subject, self._on_event)
        tasks = [
            supervise(self._hold_lease, "wsgateway-lease"),
            supervise(self._reconcile, "wsgateway-reconcile"),
            supervise(self._look, "wsgateway-edges"),
            supervise(RollCall(self._broker, self._doubts.set).run, "wsgateway-roll-call"),
        ]
        try:
            await self._end.wait()
        finally:
            subscription.close()
            for task in tasks:
                task.cancel()
            limit = settings.CLOSE_TIMEOUT
            await asyncio.gather(*(outlet.stop(limit) for outlet in self._outlets))
            with contextlib.suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(RELEASE_WITHIN):
                    await self._lease.release()
            await connection.close()
            if self._ready_file is not None:
                self._ready_file.unlink(missing_ok=True)
            counts = dict(sorted(self._signalling.counts.items()))
            shown = ", ".join(f"{n} {what}" for what, n in counts.items())
            self._say(f"events: ended ({shown or 'no signals'})", event="ended", counts=counts)
        if self._failure is not None:
            raise self._failure

    # -- what gateways say -------------------------------------------------------------------

    def _on_event(
        self, subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None
    ) -> None:
        try:
            _, inbox = self._broker.subjects.parse(subject.decode())
            event = parse_event(payload)
        except (MalformedMessage, NameRefused, UnicodeDecodeError) as exc:
            where = subject.decode("utf-8", "replace")
            logger.debug("skipped an event: %s", reason_of(exc), extra={"subject": where})
            return
        if self._early is None:
            self._take(inbox, event)
        elif len(self._early) < MAX_EARLY:
            self._early.append((inbox, event))

    def _take(self, inbox: Inbox, event: SocketEvent) -> None:
        time = _time(event.time)
        about = {
            "device": event.device,
            "connection": event.connection,
            "gateway": event.gateway,
            "protocol": event.protocol,
            "time": time,
        }
        if event.event == CONNECTED:
            self._send(socket_connected, inbox, **about)
            self._came(inbox, time)
        elif event.event == DISCONNECTED:
            self._send(socket_disconnected, inbox, code=event.code, **about)
            if inbox in self._edges.online:
                self._edges.left(inbox, self._now(), event.reconnect_after)
                self._left_at[inbox] = time

    def _send(self, signal: Signal, inbox: Inbox, **arguments: Any) -> None:
        for outlet in self._outlets:
            outlet.send(signal, inbox, **arguments)

    def _came(self, inbox: Inbox, time: datetime) -> None:
        self._left_at.pop(inbox, None)
        if self._edges.came(inbox):
            self._send(user_online, inbox, time=time)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    # -- what they do not say ----------------------------------------------------------------

    async def _look(self) -> None:
        """Find out who has gone offline, until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            counters.events.online = len(self._edges.online)
            remaining = iter(self._edges.due(self._now()))
            while batch := list(islice(remaining, BATCH)):
                found = await self._ask(batch)
                for inbox in batch:
                    self._found(inbox, found.get(inbox))

    def _found(self, inbox: Inbox, online: bool | None) -> None:
        is_offline = self._edges.found(inbox, online, self._now())
        if inbox in self._edges.leaving:
            return
        time = self._left_at.pop(inbox, None) or datetime.now(UTC)
        if is_offline:
            self._send(user_offline, inbox, time=time)

    async def _ask(self, inboxes: list[Inbox]) -> Mapping[Inbox, bool | None]:
        try:
            return await find_online(self._broker, inboxes)
        except BrokerError as exc:
            logger.debug("cannot find out who is online: %s", reason_of(exc))
            return {}

    async def _reconcile(self) -> None:
        """List who is online whenever that is in doubt, until cancelled."""
        begin = self._now()
        await self._looked.wait()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECONCILE):
                    await self._doubts.wait()
            self._doubts.clear()
            try:
                listed, complete = await list_online(self._broker)
            except BrokerError as exc:
                logger.debug("cannot find out who is online: %s", reason_of(exc))
                complete = False
            else:
                # Who is silent for longer does not exist, as far as presence knows
                patient = self._now() - begin < settings.ROSTER_TTL + RETRY
                if complete or (self._early is not None and not patient):
                    await self._compare(listed)
            if not complete:
                self._doubts.set()
                await asyncio.sleep(RETRY)

    async def _compare(self, listed: set[Inbox]) -> None:
        """Compare what is known with who is online."""
        early, self._early = self._early, None
        if early is not None:
            for inbox in listed:
                self._edges.came(inbox)  # since when, nobody knows
            for inbox, event in early:
                self._take(inbox, event)
            self._announce()
            return
        remaining = iter(self._edges.listed(listed, self._now()))
        while missed := list(islice(remaining, BATCH)):
            for inbox, online in (await self._ask(missed)).items():
                if online:
                    self._came(inbox, datetime.now(UTC))

    def _announce(self) -> None:
        online = len(self._edges.online)
        self._say(f"events: ready ({online} users are online)", event="ready", online=online)
        try:
            if self._ready_file is not None:
                self._ready_file.touch()
        except OSError as exc:  # nobody would ever see that it is ready
            self._failure = exc
            self._end.set()

    # -- whether it sends signals ------------------------------------------------------------

    async def _hold_lease(self) -> None:
        while True:
            try:
                await self._lease.renew()
            except BrokerError as exc:
                logger.debug("cannot renew the lease: %s", reason_of(exc))
            self._looked.set()
            if self._lease.held is not self._active:
                self._active = counters.events.active = self._lease.held
                if self._active:
                    self._say("events: active", event="active")
                else:
                    self._say("events: standing by", event="standby")
            pause = settings.ROSTER_TTL / RENEWALS if self._active else LOOK_FOR_LEASE
            self._renew.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._renew.wait()

    def _on_ready(self) -> None:
        """Look again at everything: the connection was lost, and events with it."""
        self._renew.set()
        self._doubts.set()


def _time(text: str) -> datetime:
    """Return the time that an event names; now if it is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
