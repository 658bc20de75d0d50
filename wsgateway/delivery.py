"""One socket's shell, and the hub that all sockets of a loop share.

`Delivery` joins inbox, broker and socket; nothing else does. Its one task writes what the
`InboxReader` says and reads what it asks for. The `Hub` holds one live subscription per user,
writes cursors, and looks for messages that the live subscription missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from wsgateway.broker import get_broker
from wsgateway.broker.base import (
    CONNECTION_HEADER,
    DEVICE_HEADER,
    Broker,
    Closable,
    Receipt,
    Stored,
)
from wsgateway.codes import CloseCode
from wsgateway.conf import settings
from wsgateway.daphne import at_shutdown, quieten
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    IdentityRefused,
    MalformedMessage,
)
from wsgateway.frames import Frame
from wsgateway.identity import Identity
from wsgateway.inbox import InboxReader
from wsgateway.lane import NONE, Lane
from wsgateway.protocol import MAX_AFTER, Reason, Resume
from wsgateway.recovery import Start, find_start
from wsgateway.revocation import Revocations
from wsgateway.sockets import Socket, SocketClosed
from wsgateway.subjects import Inbox, encode_token

__all__ = ["Delivery", "Hub", "get_hub"]

logger = logging.getLogger("wsgateway")

SAVES_IN_FLIGHT = 8
"""Few, so that messages are not delayed behind a burst of cursors."""
STARTS_AT_ONCE = 32
"""Sockets that find their beginning at the same time. When a gateway dies, thousands come at once;
all together they would take so long that each one's time-outs pass, and all would come again."""
LAG_PAUSE = 0.02
"""First pause before a lagging replica is asked again, seconds; doubles up to LAG_CAP."""
LAG_CAP = 2.0


class _Cursor:
    """A device's progress: the furthest that any of its sockets confirmed."""

    __slots__ = ("confirmed", "saved", "sockets")

    def __init__(self) -> None:
        self.confirmed = 0
        self.saved = 0
        self.sockets = 0


class _Shared:
    """What the sockets of one user share."""

    __slots__ = ("cursors", "deliveries", "heard", "watch")

    def __init__(self) -> None:
        self.deliveries: set[Delivery] = set()
        self.cursors: dict[str, _Cursor] = {}  # by device
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
        "_task",
        "_wake",
        "connection",
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
        self.socket = socket
        socket.delivery = self
        self.reader = InboxReader(settings.WINDOW)
        self.lane = Lane(self._offer, settings.SEND_WINDOW, settings.BROKER_TIMEOUT)
        self._wake: asyncio.Future[None] | None = None  # set while the task sleeps
        self._task: asyncio.Task[None] | None = None
        self._cursor: _Cursor | None = None  # the device's, once attached
        self._anew: Start | None = None  # where to begin again, because the stream changed

    # -- life cycle ----------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """Names the life of the stream that offsets belong to."""
        return self._hub.broker.epoch

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
            await self.socket.accept()
            await self.socket.begin(start)
        except SocketClosed:
            self._hub.detach(self)
            return
        except BaseException:
            self._hub.detach(self)
            raise
        self.reader.start(start.offset)
        if claim.offset is not None:
            self._hub.confirmed(self, start.offset)
        self._task = asyncio.create_task(self._run(), name="wsgateway-delivery")

    async def _find_start(self, cursor: _Cursor, claim: Resume) -> Start:
        broker, known = self._hub.broker, cursor.confirmed
        if claim.offset is None:
            loaded = await broker.load_cursor(self.inbox, self.identity.device)
            cursor.saved = max(loaded, cursor.saved)
            known = max(loaded, cursor.confirmed)
            if not self.socket.acknowledges:
                return Start(known)
        return await find_start(broker, self.inbox, claim, known, settings.INBOX_MAX_MESSAGES)

    def begin_anew(self, reason: Reason) -> None:
        """Begin at the start of the inbox: the client's offsets mean nothing any more."""
        self._anew = Start(0, reason)
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
            await asyncio.wait({saving}, timeout=settings.CLOSE_TIMEOUT)

    def close_soon(self, code: CloseCode) -> None:
        """Close the socket from a callback."""
        self._hub.keep(self.socket.close(code))

    def reconnect_after(self) -> float:
        """Return the seconds after which this client is to come back, see `Hub.reconnect_after`."""
        return self._hub.reconnect_after()

    # -- to the client -------------------------------------------------------------------

    def on_live(self, stored: Stored) -> None:
        """Take a message that has just been stored."""
        if self.reader.live(stored):
            self.wake()

    def announce(self, offset: int) -> None:
        """Take note that the inbox reaches to *offset*."""
        if self.reader.announce(offset):
            self.wake()

    def confirm(self, offset: int) -> None:
        """Note that the client has everything up to *offset* (cumulative)."""
        if self.reader.confirm(offset):
            self._hub.confirmed(self, self.reader.confirmed)
            if self.reader.wants_fetch:
                self.wake()

    def wake(self) -> None:
        """Let the task look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        reader = self.reader
        try:
            while True:
                if self._anew is not None:
                    await self._begin_anew(self._anew)
                await self._write_ready()
                if self.socket.unsettled and reader.room <= 0:
                    await self.socket.transport.drained()
                    self.settle()
                if reader.wants_fetch:
                    await self._fetch()
                    continue
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

    async def _begin_anew(self, start: Start) -> None:
        self._anew = None
        if self._cursor is not None:
            self._cursor.confirmed = self._cursor.saved = 0
        self.reader.restart(start.offset)
        await self.socket.begin(start)

    async def _write_ready(self) -> None:
        reader = self.reader
        write, acknowledges = self.socket.write, self.socket.acknowledges
        while (message := reader.take()) is not None:
            assert isinstance(message, Stored)
            try:
                await write(message)
            except MalformedMessage as exc:
                self._hub.counts["malformed"] += 1
                count = self._hub.counts["malformed"]
                logger.warning("skipped message %s (%s so far): %s", message.offset, count, exc)
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
        reader = self.reader
        pause = LAG_PAUSE
        while reader.wants_fetch and self._anew is None:
            if reader.lagging:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAG_CAP)
            offset, room = reader.begin_fetch()
            try:
                batch = await self._hub.broker.read_after(self.inbox, offset, limit=min(room, 1000))
            except BrokerClosed:
                raise
            except BrokerError as exc:
                reader.fetch_failed()
                logger.debug("cannot read an inbox now: %s", exc)
                await self._hub.usable()
                continue
            reader.fetched(batch.messages, more=batch.more)
            await self._write_ready()

    # -- from the client -----------------------------------------------------------------

    async def put(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str] = NONE
    ) -> asyncio.Future[Receipt]:
        """Publish what the client sent; waits while too much is in flight, see `Lane.put`."""
        return await self.lane.put(frame, msg_id, headers)

    def _offer(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str]
    ) -> asyncio.Future[Receipt]:
        ours = {
            CONNECTION_HEADER: self.connection,
            DEVICE_HEADER: encode_token(self.identity.device),
        }
        return self._hub.broker.offer(self.inbox, frame, msg_id, {**ours, **headers})


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
        self.unsettled: set[Delivery] = set()
        """Sockets whose last messages may wait for the kernel."""
        self._revocations = Revocations(broker)
        self._users: dict[Inbox, _Shared] = {}
        self._dirty: dict[tuple[Inbox, str], _Cursor] = {}  # cursors to write
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted: set[asyncio.Task[None]] = set()  # short ones, kept from collection
        self._epoch = ""
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
        self.broker.on_ready(self._resync.set)
        self._revocations.listen()
        self._tasks = [
            asyncio.create_task(self._watched(self._save_cursors), name="wsgateway-cursors"),
            asyncio.create_task(self._watched(self._sweep), name="wsgateway-sweep"),
            asyncio.create_task(self._watched(self._revocations.run), name="wsgateway-revocations"),
        ]
        at_shutdown(self.close)
        quieten()
        await self.broker.open()

    async def close(self) -> None:
        """Close the sockets, write the cursors, end the tasks, close the broker. Idempotent."""
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
        await self.broker.close()

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

    async def _watched(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* for ever; one that fails is logged and begins again."""
        while True:
            try:
                await work()
            except BrokerClosed:
                return
            except BrokerError as exc:
                logger.debug("background work waits for the broker: %s", exc)
                await self.usable()
            except Exception:
                logger.exception("background work failed; it begins again")
                await asyncio.sleep(1.0)

    async def usable(self) -> None:
        """Wait until the broker is ready, however long that takes."""
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

    def attach(self, delivery: Delivery) -> _Cursor:
        """Add a socket; its live messages arrive from now on.

        Raises:
            IdentityRefused: The user has too many sockets here.
        """
        shared = self._users.get(delivery.inbox) or _Shared()
        limit = settings.MAX_CONNECTIONS_PER_USER
        if limit and len(shared.deliveries) >= limit:
            raise IdentityRefused(
                CloseCode.TOO_MANY_CONNECTIONS, f"the user has {limit} connections already"
            )
        if shared.watch is None:
            self._users[delivery.inbox] = shared
            shared.watch = self.broker.watch(delivery.inbox, self._live(shared))
        shared.deliveries.add(delivery)
        self._revocations.add(delivery)
        cursor = shared.cursors.setdefault(delivery.identity.device, _Cursor())
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
        if cursor.sockets == 0 and cursor.confirmed > cursor.saved:
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
            await self._save(inbox, device, cursor)
        except BrokerError as exc:
            logger.info("a cursor was not written, its last messages may come twice: %s", exc)
        finally:
            self._forget(inbox, device)

    def _forget(self, inbox: Inbox, device: str) -> None:
        shared = self._users.get(inbox)
        if shared is None:
            return
        cursor = shared.cursors.get(device)
        if cursor is not None and cursor.sockets == 0:
            del shared.cursors[device]
            self._dirty.pop((inbox, device), None)
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
        if cursor is not None and offset > cursor.confirmed:
            cursor.confirmed = offset
            self._dirty[delivery.inbox, delivery.identity.device] = cursor

    async def _save_cursors(self) -> None:
        while True:
            await asyncio.sleep(settings.CURSOR_INTERVAL)
            await self._flush_cursors()

    async def _flush_cursors(self) -> None:
        for delivery in list(self.unsettled):
            delivery.settle()
        dirty, self._dirty = self._dirty, {}
        todo = list(dirty.items())
        try:
            while todo:
                part = todo[-SAVES_IN_FLIGHT:]
                saves = [self._save(inbox, device, cursor) for (inbox, device), cursor in part]
                results = await asyncio.gather(*saves, return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
                del todo[-SAVES_IN_FLIGHT:]
        finally:
            for key, cursor in todo:
                self._dirty.setdefault(key, cursor)

    async def _save(self, inbox: Inbox, device: str, cursor: _Cursor) -> None:
        offset = cursor.confirmed
        if offset > cursor.saved and self._epoch in ("", self.broker.epoch):
            # With another epoch the offset means nothing; the next sweep begins anew.
            await self.broker.save_cursor(inbox, device, offset)
            cursor.saved = max(offset, cursor.saved)

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
        before = [(d, d.reader.position) for d in self._deliveries() if everything]
        position = await self.broker.position()
        if self._epoch and position.epoch != self._epoch:
            logger.warning("the inbox stream is a new one; sockets begin at its start")
            for delivery in self._deliveries():
                delivery.begin_anew(Reason.EPOCH)
        self._epoch = position.epoch
        for delivery, reached in before:
            if reached > position.last:
                # The stream has lost its end (a server that loses power loses what it had not
                # synced) and gives those offsets out again: some may be given out already.
                logger.warning("the inbox stream lost its end; a socket begins at its start")
                delivery.begin_anew(Reason.AHEAD)
        if position.last == self._swept and not everything:
            return
        quiet = [i for i, shared in self._users.items() if everything or not shared.heard]
        for shared in self._users.values():
            shared.heard = False
        for inbox, offset in (await self.broker.last_offsets(quiet)).items():
            for delivery in list(self._users[inbox].deliveries if inbox in self._users else ()):
                delivery.announce(offset)
        self._swept = position.last


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = weakref.WeakKeyDictionary()


def get_hub() -> Hub:
    """Return the running loop's hub, made at the first call; not opened."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        hub = _hubs[loop] = Hub(get_broker())
    return hub
