"""One socket's shell, and the hub that all sockets of a loop share.

`Delivery` joins inbox, broker and socket; nothing else does. Its one task writes what the
`InboxReader` says and reads what it asks for. The `Hub` holds one live subscription per user,
writes cursors, and looks for messages that the live subscription missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from wsgateway.broker import runtime
from wsgateway.broker.base import (
    CONNECTION_HEADER,
    DEVICE_HEADER,
    RESOLVER_HEADER,
    Batch,
    Broker,
    Closable,
    Position,
    Receipt,
    Stored,
)
from wsgateway.broker.recovery import LIFE, Reached, Start, find_lost, find_start, nothing_trimmed
from wsgateway.conf import settings
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    IdentityRefused,
    MalformedMessage,
)
from wsgateway.gateway.cursors import Cursor, Cursors
from wsgateway.gateway.daphne import at_shutdown, quieten
from wsgateway.gateway.publish_queue import NONE, Lane
from wsgateway.gateway.revocation import Revocations
from wsgateway.gateway.sockets import Socket, SocketClosed
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame, NotForSockets
from wsgateway.protocol.subjects import Inbox, encode_token
from wsgateway.protocol.v1 import MAX_AFTER, Reason, Resume
from wsgateway.protocol.window import InboxReader
from wsgateway.supervision import supervise

__all__ = ["Delivery", "Hub", "get_hub"]

logger = logging.getLogger("wsgateway")

STARTS_AT_ONCE = 32
"""Sockets that find their beginning at the same time. When a gateway dies, thousands come at once;
all together they would take so long that each one's time-outs pass, and all would come again."""
NEW_COOKIE = (2.0, 4.0)
"""Seconds that a client waits for its new cookie: the session is rotated while the response that
brings it is still being made. One that came at once would be refused, and stop."""
LAG_PAUSE = 0.02
"""First pause before a lagging replica is asked again, seconds; doubles up to LAG_CAP."""
LAG_CAP = 2.0
EVENTS_INTERVAL = 60.0
"""Seconds in which the log says once that sockets do not get events."""
REFUSED_PAUSE = (0.05, 0.25)
"""Seconds after which something that failed is tried again, at the earliest."""


class _Shared:
    """What the sockets of one user share."""

    __slots__ = ("cursors", "deliveries", "heard", "watch")

    def __init__(self) -> None:
        self.deliveries: set[Delivery] = set()
        self.cursors: dict[str, Cursor] = {}  # by device
        self.watch: Closable | None = None
        self.heard = False  # a live message came since the last sweep


class Delivery:
    """One socket. `start` it to end the handshake, `stop` it when the socket is gone.

    Args:
        hub: The loop's hub.
        identity: Whose socket.
        socket: Writes, reads and closes.
    """

    __slots__ = (
        "__weakref__",
        "_anew",
        "_cursor",
        "_hub",
        "_lives",
        "_proved",
        "_sender",
        "_task",
        "_told",
        "_unnamed",
        "_wake",
        "connection",
        "epoch",
        "identity",
        "inbox",
        "lane",
        "reader",
        "socket",
    )

    def __init__(self, hub: Hub, identity: Identity, socket: Socket) -> None:
        self._hub = hub
        self.identity = identity
        self.inbox: Inbox = identity.inbox
        self.connection = uuid.uuid4().hex
        """Names this socket; part of what services get."""
        self._sender = {  # headers of what the client sends
            CONNECTION_HEADER: self.connection,
            DEVICE_HEADER: encode_token(identity.device),
            **({RESOLVER_HEADER: identity.resolver} if identity.resolver else {}),
        }
        self.socket = socket
        socket.delivery = self
        self.reader = InboxReader(settings.WINDOW)
        self.lane = Lane(
            self._offer,
            settings.SEND_WINDOW,
            settings.SEND_WINDOW_BYTES,
            self._patience,
            strict=not socket.acknowledges,
        )
        self._wake: asyncio.Future[None] | None = None  # set while the task sleeps
        self._task: asyncio.Task[None] | None = None
        self._cursor: Cursor | None = None  # the device's, once attached
        self._anew: Start | None = None  # where to begin again, because the stream changed
        self.epoch = ""
        """Life of the stream that the reader's offsets belong to; empty before the start."""
        self._lives = 0  # how often delivery began again
        self._unnamed = False  # the client sent an acknowledgement without an epoch
        self._told = -1  # position at which the client knows that messages may be missing
        self._proved = -1  # position at which it was proved that none are

    # -- life cycle ----------------------------------------------------------------------

    @property
    def client_epoch(self) -> str:
        """What the client calls `epoch`: another name each time that delivery began again.

        A stream that loses its end keeps its epoch, and a late acknowledgement would confirm
        messages of the same offsets. `recovery` takes the name for the epoch.
        """
        return f"{self.epoch}{LIFE}{self._lives}" if self._lives else self.epoch

    @property
    def largest_message(self) -> int:
        """Bytes of the largest message that the broker takes from a client now."""
        return self._hub.broker.largest_offer

    def _patience(self) -> float:
        """Return how long a client's frame may wait: an election passes, an outage may not."""
        connected = self._hub.broker.connected
        return settings.PUBLISH_TIMEOUT if connected else settings.BROKER_TIMEOUT

    async def start(self, claim: Resume) -> None:
        """Find out where to begin, accept the socket, begin to deliver.

        In this order: what is published once the client is connected must reach this socket,
        even if the device's other sockets confirm it before this one begins.

        Args:
            claim: The client's own position, if it has one; otherwise the device's cursor counts.

        Raises:
            BrokerUnavailable: The cursor could not be read.
            IdentityRefused: The user has too many sockets here.
        """
        self._cursor = cursor = self._hub.attach(self)
        try:
            start = await self._find_start(cursor, claim)
            self.epoch = start.epoch
            await self.socket.accept()
            await self.socket.begin(start)
        except SocketClosed:
            self._hub.detach(self)
            return
        except BaseException:
            self._hub.detach(self)
            raise
        self.reader.start(start.offset)
        self._note(start)
        if claim.offset is not None:
            self._hub.confirmed(self, start.offset)
        self._task = asyncio.create_task(self._run(), name="wsgateway-delivery")

    async def _find_start(self, cursor: Cursor, claim: Resume) -> Start:
        broker, device, known = self._hub.broker, self.identity.device, 0
        if claim.offset is None:
            loaded = known = await broker.load_cursor(self.inbox, device)
            if cursor.confirmed > known:  # by another socket, and not saved yet
                position = await broker.position()
                if cursor.epoch == position.epoch and cursor.confirmed <= position.last:
                    known = cursor.confirmed
            cursor.enter(broker.epoch)
            cursor.saved = max(loaded, cursor.saved)
            if not self.socket.acknowledges:
                return Start(broker.epoch, known)
        start = await find_start(broker, self.inbox, claim, known)
        if start.reason is Reason.AHEAD:
            await broker.load_cursor(self.inbox, device)  # drops it, should it be ahead as well
        return start

    def _note(self, start: Start) -> None:
        """Note what the client knows of its past."""
        recovered = start.reason is None
        self._told = -1 if recovered else start.offset
        self._proved = start.offset if recovered else -1

    def begin_anew(self, epoch: str, reason: Reason) -> None:
        """Begin at the start of the inbox: the client's offsets mean nothing any more."""
        self._anew = Start(epoch, 0, reason)
        self.wake()

    async def stop(self) -> None:
        """End delivery; what the client has is saved, what it sent and is stored stays."""
        self.socket.end()
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=1.0)
        self.settle()
        saving = self._hub.detach(self)
        if saving is not None:
            await asyncio.wait({saving}, timeout=settings.CLOSE_TIMEOUT / 4)  # the hub keeps it

    def close_soon(self, code: CloseCode) -> None:
        """Close the socket from a callback; nothing more is taken from it."""
        self.socket.deaf = True
        self._hub.keep(self.socket.close(code))

    def reconnect_after(self, code: CloseCode) -> float:
        """Return the seconds after which this client is to come back, random within bounds."""
        if code is CloseCode.CREDENTIALS_CHANGED:
            return random.uniform(*NEW_COOKIE)  # noqa: S311 - jitter, no secret
        return self._hub.reconnect_after()

    # -- to the client -------------------------------------------------------------------

    def on_live(self, stored: Stored) -> None:
        """Take a message that has just been stored."""
        if self.reader.live(stored):
            self.wake()
        elif self.reader.suspect is not None:
            self._hub.resync()

    def announce(self, offset: int) -> None:
        """Record that the inbox reaches to *offset*."""
        if self.reader.announce(offset):
            self.wake()

    def check(self) -> None:
        """Look again at what the inbox holds, and whether anything is missing."""
        if self.reader.doubt():
            self.wake()

    def acknowledge(self, offset: int, epoch: str | None) -> bool:
        """Take the client's word that it has everything up to *offset*; say if that is news.

        Args:
            offset: May be more than was sent.
            epoch: Which *offset* belongs to, as the client calls it; None if it does not say.
        """
        if epoch is None:
            self._unnamed = True
            if self._lives:  # is it about the stream before?
                self.close_soon(CloseCode.STREAM_REPLACED)
                return False
        elif epoch != self.client_epoch:
            return False
        return self.confirm(offset)

    def confirm(self, offset: int) -> bool:
        """Note that the client has everything up to *offset* (cumulative); say if that is news."""
        if self._changed():
            return False  # *offset* belongs to what was before
        if not self.reader.confirm(offset):
            return False
        self._hub.confirmed(self, self.reader.confirmed)
        if self.reader.wants_fetch:
            self.wake()
        return True

    def wake(self) -> None:
        """Let the task look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        reader = self.reader
        try:
            while True:
                await self._write_ready()
                if self.socket.unsettled and reader.room <= 0:
                    await self.socket.transport.drained()
                    self.settle()
                # Each wait may have been the one in which the stream changed: look at all that
                # may wake this task, and then sleep at once.
                if self._anew is not None:
                    await self._begin_anew(self._anew)
                elif reader.wants_fetch:
                    await self._fetch()
                else:
                    self._wake = loop.create_future()
                    await self._wake
        except asyncio.CancelledError:
            raise
        except SocketClosed:
            return
        except BrokerClosed:
            await self.socket.close(CloseCode.SHUTTING_DOWN)
        except Exception:
            logger.exception("delivery to a socket of %s failed; closing it", self.inbox.service)
            with contextlib.suppress(Exception):
                await self.socket.close(CloseCode.BROKER_UNAVAILABLE)

    def _changed(self) -> bool:
        """Whether offsets of the reader mean nothing any more; each wait may make it true."""
        return self._anew is not None

    async def _begin_anew(self, start: Start) -> None:
        self._anew = None
        self._lives += 1
        self.epoch = start.epoch
        self.reader.restart(start.offset)
        self._note(start)
        await self.socket.begin(start)
        if self._unnamed:  # its acknowledgements may come too late to be told apart
            await self.socket.close(CloseCode.STREAM_REPLACED)

    async def _write_ready(self) -> None:
        reader = self.reader
        write, acknowledges = self.socket.write, self.socket.acknowledges
        while not self._changed() and (message := reader.take()) is not None:
            assert isinstance(message, Stored)
            try:
                await write(message)
            except MalformedMessage as exc:
                self._hub.note_skipped(message.offset, exc)
                reader.drop(message.offset)
                self.socket.skip(message.offset)
            if not acknowledges and (settled := self.socket.settled) > reader.confirmed:
                self.confirm(settled)
        self.settle()

    def settle(self) -> None:
        """Confirm what the kernel has, for sockets whose client does not acknowledge.

        While it does not have everything, the hub asks again before it writes cursors.
        """
        if self.socket.acknowledges:
            return
        self.confirm(self.socket.settled)
        if self.socket.unsettled:
            self._hub.unsettled.add(self)
        else:
            self._hub.unsettled.discard(self)

    async def _fetch(self) -> None:
        reader, broker, told = self.reader, self._hub.broker, self.socket.acknowledges
        pause = LAG_PAUSE
        while reader.wants_fetch and not self._changed():
            if reader.lagging:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAG_CAP)
            offset, room = reader.begin_fetch()
            try:
                batch = await broker.read_after(
                    self.inbox, offset, limit=min(room, 1000), anchor=told
                )
                trimmed = told and await self._trimmed(offset, batch)
            except BrokerClosed:
                raise
            except BrokerError as exc:
                reader.fetch_failed()
                logger.debug("cannot read an inbox now: %s", exc)
                await self._hub.usable()
                continue
            if self._changed():
                reader.fetch_failed()  # what was read may be of either stream
                return
            if trimmed:
                self._hub.counts["trimmed"] += 1
                # What is on its way stays there: the client goes on from what it confirmed.
                await self.socket.begin(Start(self.epoch, reader.confirmed, Reason.TRIMMED))
            reader.fetched(batch.messages, more=batch.more)
            await self._write_ready()

    async def _trimmed(self, offset: int, batch: Batch) -> bool:
        """Whether messages between *offset* and *batch* may be missing, and the client not know."""
        if batch.anchored or offset == self._told:
            return False
        if offset == self._proved and not batch.messages:
            return False
        if await nothing_trimmed(self._hub.broker, self.inbox, offset):
            self._proved = offset
            return False
        self._told = offset
        return True

    # -- from the client -----------------------------------------------------------------

    async def put(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str] = NONE
    ) -> asyncio.Future[Receipt]:
        """Publish what the client sent; waits while too much is in flight, see `Lane.put`."""
        return await self.lane.put(frame, msg_id, headers)

    def _offer(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str]
    ) -> asyncio.Future[Receipt]:
        return self._hub.broker.offer(self.inbox, frame, msg_id, {**self._sender, **headers})


class Hub:
    """What all sockets of one event loop share.

    Args:
        broker: The loop's broker; the hub opens and closes it.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.starting = asyncio.Semaphore(STARTS_AT_ONCE)
        """Held by a socket while it starts; the others wait their turn."""
        self.counts: Counter[str] = Counter()
        """Messages skipped, by reason."""
        self.cursors = Cursors(broker)
        self.unsettled: set[Delivery] = set()
        """Sockets whose last messages may wait for the kernel."""
        self._revocations = Revocations(broker)
        self._users: dict[Inbox, _Shared] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted: set[asyncio.Task[None]] = set()  # short ones, kept from collection
        self._tells_of_events = -math.inf  # when the log may say again that one was skipped
        self._swept = -1  # the stream's last offset at the last sweep
        self._resync = asyncio.Event()
        self._opened = False
        self.draining = False
        """Whether it is being closed: no socket is accepted any more."""
        self._spread: float | None = None  # seconds over which clients come back, once draining

    async def open(self) -> None:
        """Open the broker and start the background tasks; returns at once. Idempotent."""
        if self._opened:
            return
        self._opened = True
        logger.info("the gateway starts; its broker is %s", self.broker.where)
        self.broker.on_ready(self.resync)
        self.broker.on_lost(self._suspect_end)
        self._revocations.listen()
        self._tasks = [
            self._keep_doing(self._save_cursors, "wsgateway-cursors"),
            self._keep_doing(self._sweep, "wsgateway-sweep"),
            self._keep_doing(self._revocations.run, "wsgateway-revocations"),
        ]
        at_shutdown(self.close)
        quieten()
        await self.broker.open()

    async def close(self) -> None:
        """Close the sockets, write the cursors, end the tasks, close the broker. Idempotent.

        Each step has a quarter of ``WSGATEWAY_CLOSE_TIMEOUT``; the last one is the server's.
        """
        if not self._opened:
            return
        self.draining = True
        # A socket whose client does not read must not take the time that the cursors need
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):
                await asyncio.gather(*(self._shut(d) for d in self._deliveries()))
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):
                if self._wanted:
                    await asyncio.wait(self._wanted)
                await self._flush_cursors()
        for task in (*self._tasks, *self._wanted):
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):  # it may not answer
                await runtime.close(self.broker)

    def reconnect_after(self) -> float:
        """Return the seconds after which a client is to come back: random, by the rate allowed."""
        if self._spread is None:
            self._spread = self.sockets / settings.DRAIN_RATE
        return min(random.uniform(0.0, self._spread), MAX_AFTER)  # noqa: S311 - jitter, no secret

    async def _shut(self, delivery: Delivery) -> None:
        await delivery.socket.close(CloseCode.SHUTTING_DOWN)
        await delivery.stop()

    def _deliveries(self) -> list[Delivery]:
        return [d for shared in self._users.values() for d in shared.deliveries]

    def _keep_doing(self, work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        """Run *work* for ever, in a task; while the broker is away it waits."""

        async def run() -> None:
            with contextlib.suppress(BrokerClosed):
                while True:
                    try:
                        await work()
                    except BrokerClosed:
                        raise
                    except BrokerError as exc:
                        logger.debug("%s waits for the broker: %s", name, exc)
                        await self.usable()

        return supervise(run, name)

    async def usable(self) -> None:
        """Wait until the broker is ready, however long that takes; a moment at least.

        A broker that is ready may refuse the same thing again, its permissions for example.
        """
        await asyncio.sleep(random.uniform(*REFUSED_PAUSE))  # noqa: S311 - jitter, no secret
        while True:
            try:
                await self.broker.wait_ready(60.0)
            except BrokerClosed:
                raise
            except BrokerError:
                await asyncio.sleep(0.2)
            else:
                return

    # -- sockets -------------------------------------------------------------------------

    @property
    def sockets(self) -> int:
        """How many sockets are attached."""
        return len(self._deliveries())

    def require_open(self) -> None:
        """Refuse a socket that comes too late.

        Raises:
            IdentityRefused: The hub is being closed.
        """
        if self.draining:
            raise IdentityRefused(CloseCode.SHUTTING_DOWN, CloseCode.SHUTTING_DOWN.reason)

    def attach(self, delivery: Delivery) -> Cursor:
        """Add a socket; its live messages arrive from now on.

        Raises:
            IdentityRefused: The user has too many sockets here, or the hub is being closed.
        """
        self.require_open()  # since the handshake began; nobody would close the socket
        shared = self._users.get(delivery.inbox) or _Shared()
        limit = settings.MAX_CONNECTIONS_PER_USER
        if limit and len(shared.deliveries) >= limit:
            raise IdentityRefused(
                CloseCode.TOO_MANY_CONNECTIONS,
                f"the user already has the maximum number of connections ({limit})",
                "close some, or raise WSGATEWAY_MAX_CONNECTIONS_PER_USER",
            )
        if shared.watch is None:
            self._users[delivery.inbox] = shared
            shared.watch = self.broker.watch(delivery.inbox, self._live(shared))
        shared.deliveries.add(delivery)
        self._revocations.add(delivery)
        cursor = shared.cursors.setdefault(delivery.identity.device, Cursor())
        cursor.sockets += 1
        return cursor

    def detach(self, delivery: Delivery) -> asyncio.Task[None] | None:
        """Remove a socket; return the task that writes its cursor, if that has to be done."""
        shared = self._users.get(delivery.inbox)
        if shared is None or delivery not in shared.deliveries:
            return None
        shared.deliveries.discard(delivery)
        self.unsettled.discard(delivery)
        self._revocations.discard(delivery)
        cursor = shared.cursors[delivery.identity.device]
        cursor.sockets -= 1
        if cursor.sockets == 0 and cursor.due:
            return self.keep(self._save_and_forget(delivery.inbox, delivery.identity.device))
        self._forget(delivery.inbox, delivery.identity.device)
        return None

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* beside everything else, safe from garbage collection."""
        task = asyncio.create_task(work)
        self._wanted.add(task)
        task.add_done_callback(self._wanted.discard)
        return task

    async def _save_and_forget(self, inbox: Inbox, device: str) -> None:
        """Write the last cursor; until then a new socket finds it in memory."""
        shared = self._users.get(inbox)
        cursor = None if shared is None else shared.cursors.get(device)
        if cursor is None:  # a socket that came and went meanwhile has done it
            return
        try:
            await self.cursors.save((inbox, device), cursor)
        except BrokerError as exc:
            logger.info("a cursor was not written, so messages may arrive twice: %s", exc)
        finally:
            self._forget(inbox, device)

    def _forget(self, inbox: Inbox, device: str) -> None:
        shared = self._users.get(inbox)
        if shared is None:
            return
        cursor = shared.cursors.get(device)
        if cursor is not None and cursor.sockets == 0:
            del shared.cursors[device]
            self.cursors.forget((inbox, device))
        if not shared.deliveries and not shared.cursors:
            if shared.watch is not None:
                shared.watch.close()
            del self._users[inbox]

    @staticmethod
    def _live(shared: _Shared) -> Callable[[Stored], None]:
        deliveries = shared.deliveries

        def on_message(stored: Stored) -> None:
            shared.heard = True
            for delivery in deliveries:
                delivery.on_live(stored)

        return on_message

    # -- cursors -------------------------------------------------------------------------

    def confirmed(self, delivery: Delivery, offset: int) -> None:
        """Note a device's progress; it is written within ``WSGATEWAY_CURSOR_INTERVAL``."""
        cursor = delivery._cursor
        if cursor is None:
            return
        cursor.enter(delivery.epoch)
        if offset > cursor.confirmed:
            cursor.confirmed = offset
            self.cursors.note((delivery.inbox, delivery.identity.device), cursor)

    async def _save_cursors(self) -> None:
        while True:
            await asyncio.sleep(settings.CURSOR_INTERVAL)
            await self._flush_cursors()

    async def _flush_cursors(self) -> None:
        for delivery in list(self.unsettled):
            delivery.settle()
        await self.cursors.flush()

    # -- what the live subscriptions missed ----------------------------------------------

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.SWEEP_INTERVAL):
                    await self._resync.wait()
            fresh = self._resync.is_set()
            self._resync.clear()
            try:
                await self._find_missed(everything=fresh)
            except BaseException:
                self._resync.set()
                raise

    async def _find_missed(self, *, everything: bool) -> None:
        """Announce to each inbox how far it reaches.

        Args:
            everything: Look at every inbox, not only at those that were quiet.
        """
        started = [d for d in self._deliveries() if d.epoch]
        reached = [Reached.of(d) for d in started]
        position = await self.broker.position()
        replaced = [d for d in started if d.epoch != position.epoch]
        if replaced:
            logger.warning("the inbox stream was replaced; %s sockets start again", len(replaced))
        for delivery in replaced:
            delivery.begin_anew(position.epoch, Reason.EPOCH)
        same = [each for each in reached if each.owner.epoch == position.epoch]
        await self._forget_lost(same, position, thorough=everything)
        for each in reached:
            each.owner.reader.suspect = None
        if position.last == self._swept and not everything:
            return
        if everything and position.first > self._swept + 1 > 0:
            # What came since the last sweep may have gone already, by its age.
            for delivery in started:
                delivery.check()
        quiet = [i for i, shared in self._users.items() if everything or not shared.heard]
        for shared in self._users.values():
            shared.heard = False
        for inbox, offset in (await self.broker.last_offsets(quiet)).items():
            for delivery in list(self._users[inbox].deliveries if inbox in self._users else ()):
                delivery.announce(offset)
        self._swept = position.last

    def resync(self) -> None:
        """Look at every inbox soon, and at what the stream was."""
        self._resync.set()

    def note_skipped(self, offset: int, problem: MalformedMessage) -> None:
        """Count and log a message that a socket does not get; events at most once a minute.

        A program that sends events sends many, each to all sockets of a user.
        """
        self.counts["malformed"] += 1
        level = logging.WARNING
        if isinstance(problem, NotForSockets):
            now = time.monotonic()
            level = logging.WARNING if now >= self._tells_of_events else logging.DEBUG
            if level == logging.WARNING:
                self._tells_of_events = now + EVENTS_INTERVAL
        count = self.counts["malformed"]
        logger.log(level, "skipped message %s (%s so far): %s", offset, count, problem)

    def _suspect_end(self) -> None:
        """Note how far every socket is: the server may come back without its last messages."""
        for delivery in self._deliveries():
            if delivery.epoch:
                delivery.reader.suspect_end()

    async def _forget_lost(
        self, reached: list[Reached[Delivery]], position: Position, *, thorough: bool
    ) -> None:
        """Let sockets begin again whose newest message the stream has lost."""
        lost = [each.owner for each in await find_lost(self.broker, reached, position, thorough)]
        if lost:
            logger.warning("the inbox stream lost its end; %s sockets start again", len(lost))
        for delivery in lost:
            if delivery._cursor is not None:
                delivery._cursor.lose()
                self.cursors.note((delivery.inbox, delivery.identity.device), delivery._cursor)
            delivery.begin_anew(position.epoch, Reason.AHEAD)
        if lost:
            await self._flush_cursors()


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()


def get_hub() -> Hub:
    """Return the running loop's hub, made at the first call; not opened."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        connection = runtime.current()
        connection.kept = True
        hub = _hubs[loop] = Hub(connection.broker)
    return hub
