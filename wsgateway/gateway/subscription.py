"""One inbox that a session reads: its window, and where that is in the stream."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from functools import partial
from time import time
from typing import TYPE_CHECKING

from wsgateway import counters
from wsgateway.broker.messages import Batch, Position, Stored
from wsgateway.broker.recovery import Start, find_start, nothing_trimmed
from wsgateway.broker.subscriptions import fetch
from wsgateway.counters import SAMPLE
from wsgateway.exceptions import BrokerClosed, MalformedMessage
from wsgateway.gateway.cursors import Cursor, Key
from wsgateway.gateway.sockets import SocketClosed
from wsgateway.gateway.traces import deliver
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.credit import Credit
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1 import Reason, Resume
from wsgateway.protocol.window import Window

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session

__all__ = ["Subscription"]


class Subscription:
    """Reads one inbox for one session. `find_start`, `begin`, then `run`; the hub wakes it.

    Args:
        session: Gets what is read.
        inbox: Which one.
        credit: What the session may have in flight.
    """

    __slots__ = (
        "__weakref__",
        "_acknowledges",
        "_broker",
        "_drained",
        "_log",
        "_proved",
        "_restart",
        "_session",
        "_told",
        "_wake",
        "_written",
        "address",
        "cursor",
        "epoch",
        "inbox",
        "key",
        "window",
    )

    cursor: Cursor
    """The device's, which its other sockets share; set by the hub."""

    def __init__(self, session: Session, inbox: Inbox, credit: Credit) -> None:
        self._session = session
        self._broker = session.hub.broker
        self._log = self._broker.log(inbox)
        self._acknowledges = session.endpoint.acknowledges
        self.address = self.inbox = inbox
        self.key: Key = inbox, session.identity.device
        """Whose cursor it moves."""
        self.window = Window(credit, counters.gateway.windows)
        self.epoch = ""
        """Life of the stream that the window's offsets belong to; empty before the start."""
        self._wake: asyncio.Future[None] | None = None  # set while `run` sleeps
        self._restart: Start | None = None  # where to begin again, because the stream changed
        self._told = -1  # position at which the client knows that messages may be missing
        self._proved = -1  # position at which it was proved that none are
        self._written = 0  # offset of the last message written, if the client acknowledges none
        self._drained = 0  # offset up to which the kernel is known to have everything, likewise

    # -- where it begins -----------------------------------------------------------------

    async def find_start(self, claim: Resume) -> Start:
        """Return where delivery begins.

        Args:
            claim: The client's own position, if it has one; otherwise the device's cursor counts,
                as it does for the position of a client that was another user before.

        Raises:
            BrokerUnavailable: The cursor could not be read.
        """
        if claim.is_of(self.inbox):
            start = await self._find_start(claim, self.key[1])
        else:
            start = await self._find_start(Resume(claim.device), self.key[1])
            start = start._replace(reason=Reason.EPOCH)
        self.epoch = start.epoch
        return start

    async def _find_start(self, claim: Resume, device: str) -> Start:
        broker, cursor, known = self._broker, self.cursor, 0
        if claim.offset is None:
            loaded = known = await broker.load_cursor(self.inbox, device)
            if cursor.confirmed > known:  # by another socket, and not saved yet
                position = await self._log.position()
                if cursor.epoch == position.epoch and cursor.confirmed <= position.last:
                    known = cursor.confirmed
            cursor.enter(self._log.epoch)
            cursor.saved = max(loaded, cursor.saved)
            if not self._acknowledges:
                return Start(self._log.epoch, known)
        start = await find_start(self._log, self.address, claim, known)
        if start.reason is Reason.AHEAD:
            await broker.load_cursor(self.inbox, device)  # drops it, should it be ahead as well
        return start

    def begin(self, start: Start) -> None:
        """Deliver what comes after *start*; the client knows where that is."""
        self.window.start(start.offset)
        self._note(start)

    def _note(self, start: Start) -> None:
        """Note what the client knows of its past."""
        recovered = start.reason is None
        self._told = -1 if recovered else start.offset
        self._proved = start.offset if recovered else -1
        self._written = self._drained = start.offset

    def restart(self, position: Position, reason: Reason, since: str) -> None:
        """Begin at the start of the inbox: the client's offsets mean nothing any more.

        See `wsgateway.broker.subscriptions.Subscriber.restart`.
        """
        if reason is Reason.AHEAD:
            self._session.hub.cursors.lose(self.cursor)
        self._restart = Start(position.epoch, 0, reason)
        self.wake()

    def _changed(self) -> bool:
        """Whether offsets of the window mean nothing any more; each wait may make it true."""
        return self._restart is not None

    async def _begin_again(self, start: Start) -> None:
        self._restart = None
        self.epoch = start.epoch
        self.window.restart(start.offset)
        self._note(start)
        await self._session.welcome_again(start)

    # -- to the client -------------------------------------------------------------------

    def wake(self) -> None:
        """Let `run` look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Write what the window says, and read what it asks for, until the socket is closed."""
        loop, window = asyncio.get_running_loop(), self.window
        confirms_itself, lag = not self._acknowledges, counters.gateway.live_lag
        try:
            while True:
                await self._write_ready(lag)
                if confirms_itself and self.undrained and window.room <= 0:
                    await self._session.socket.transport.drained()
                    self.confirm_drained()
                # Each wait may have been the one in which the stream changed: look at all that
                # may wake this task, and then sleep at once.
                if self._restart is not None:
                    await self._begin_again(self._restart)
                elif window.wants_fetch:
                    await self._fetch()
                else:
                    self._wake = loop.create_future()
                    await self._wake
        except SocketClosed:
            pass
        except BrokerClosed:
            await self._session.close(CloseCode.SHUTTING_DOWN)

    async def _write_ready(self, lag: counters.Histogram) -> None:
        """Write what is ready.

        Args:
            lag: Where it is counted how long ago that was stored.
        """
        window, write = self.window, self._session.socket.write
        encode, acknowledges = self._session.endpoint.message, self._acknowledges
        while not self._changed() and (message := window.take()) is not None:
            assert isinstance(message, Stored)
            try:
                frame = encode(message)
                if frame is not None:
                    traced = message.trace is not None
                    send = partial(deliver, self._session, message) if traced else write
                    if await send(frame) and not acknowledges:
                        self._drained = self._written  # before it
                    if not message.offset % SAMPLE:
                        observe_lag(lag, message.time)
            except MalformedMessage as exc:
                log_fields = self._session.socket.transport.log_fields
                self._session.hub.note_skipped(message.offset, exc, log_fields)
                window.drop(message.offset)
            if not acknowledges:
                self._written = message.offset
                if (drained := self.drained) > window.confirmed:
                    self.confirm(drained)
        if not acknowledges:
            self.confirm_drained()

    @property
    def drained(self) -> int:
        """Offset up to which the kernel has everything; for clients that do not acknowledge."""
        if self._drained < self._written and not self._session.socket.transport.pending:
            self._drained = self._written
        return self._drained

    @property
    def undrained(self) -> bool:
        """Whether something that was written may wait for the kernel; for the same clients."""
        return self.drained < self._written

    def confirm_drained(self) -> None:
        """Confirm what the kernel has, for sockets whose client does not acknowledge.

        While it does not have everything, the hub asks again before it writes cursors.
        """
        if self._acknowledges:
            return
        self.confirm(self.drained)
        if self.undrained:
            self._session.hub.cursors.undrained.add(self)
        else:
            self._session.hub.cursors.undrained.discard(self)

    def confirm(self, offset: int) -> bool:
        """Note that the client has everything up to *offset* (cumulative); say if that is news."""
        if self._restart is not None:
            return False  # *offset* belongs to what was before
        if not self.window.confirm(offset):
            return False
        self._session.hub.cursors.confirm(self.cursor, self.epoch, self.window.confirmed)
        for each in self._session.subscriptions:
            if each.window.wants_fetch:  # there is credit now
                each.wake()
        return True

    # -- from the stream -----------------------------------------------------------------

    async def _fetch(self) -> None:
        while self.window.wants_fetch and not self._changed():
            found = await fetch(self._broker, self, self._read, self._changed)
            if found is None:
                continue
            batch, trimmed = found
            if trimmed:
                # What is on its way stays there: the client goes on from what it confirmed.
                start = Start(self.epoch, self.window.confirmed, Reason.TRIMMED)
                await self._session.welcome(start)
            counters.gateway.fetched += len(batch.messages)
            self.window.fetched(batch.messages, more=batch.more)
            await self._write_ready(counters.gateway.fetched_lag)

    async def _read(self, offset: int, limit: int) -> tuple[Batch, bool]:
        """Return what was read, and whether the client must hear that messages may be missing."""
        told = self._acknowledges
        counters.gateway.fetches += 1
        batch = await self._log.read_after(self.address, offset, limit=limit, anchor=told)
        return batch, told and await self._trimmed(offset, batch)

    async def _trimmed(self, offset: int, batch: Batch) -> bool:
        """Whether messages between *offset* and *batch* may be missing, and the client not know."""
        if batch.anchored or offset == self._told:
            return False
        if offset == self._proved and not batch.messages:
            return False
        if await nothing_trimmed(self._log, self.address, offset):
            self._proved = offset
            return False
        self._told = offset
        return True


def observe_lag(lag: counters.Histogram, stored: str) -> None:
    """Count how long ago a message was *stored*, which is RFC 3339 text in UTC."""
    with contextlib.suppress(ValueError, OverflowError):  # not known, or a publisher's own header
        lag.observe(time() - datetime.fromisoformat(stored).timestamp())
