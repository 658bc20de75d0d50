"""What a session reads: one inbox or topic, its window, and where that is in the log."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from datetime import datetime
from functools import partial
from time import time
from typing import TYPE_CHECKING

from wsgateway import counters
from wsgateway.broker.messages import Batch, Position, Stored
from wsgateway.broker.recovery import Start, nothing_trimmed
from wsgateway.broker.subscriptions import fetch
from wsgateway.counters import SAMPLE
from wsgateway.exceptions import BrokerClosed, MalformedMessage
from wsgateway.gateway.traces import deliver
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import Address
from wsgateway.protocol.v1 import Reason
from wsgateway.protocol.window import Window
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.gateway.session import Session

__all__ = ["Subscription"]


class Subscription(ABC):
    """Reads one inbox or topic for one session. `begin` it; the session's writer writes it.

    Args:
        session: Gets what is read.
        address: What to read.
    """

    __slots__ = (
        "__weakref__",
        "_acknowledges",
        "_drained",
        "_fetched",
        "_fetching",
        "_is_due",
        "_log",
        "_proved",
        "_restart",
        "_session",
        "_told",
        "_trimmed",
        "_written",
        "address",
        "closed",
        "epoch",
        "window",
    )

    def __init__(self, session: Session, address: Address) -> None:
        self._session = session
        self._log = session.hub.broker.log(address)
        self._acknowledges = session.endpoint.acknowledges
        self.address = address
        self.window = Window(session.credit, counters.gateway.windows, self.wake)
        self.epoch = ""
        """Life of the log that the window's offsets belong to; empty before the start."""
        self.closed = False
        """Whether nothing more of it is to be written."""
        self._is_due = False  # the writer is going to write it
        self._fetching: asyncio.Task[None] | None = None
        self._fetched = 0  # offset up to which messages did not come live
        self._restart: Start | None = None  # where to begin again, because the log changed
        self._trimmed = False  # the client is to be told that messages may be missing
        self._told = -1  # position at which the client knows that messages may be missing
        self._proved = -1  # position at which it was proved that none are
        self._written = 0  # offset of the last message written, if the client acknowledges none
        self._drained = 0  # offset up to which the kernel is known to have everything, likewise

    # -- what the client is told ---------------------------------------------------------

    @abstractmethod
    async def _tell_trimmed(self, start: Start) -> None:
        """Tell the client that messages after *start* may be missing; it keeps its position."""

    @abstractmethod
    async def _tell_restart(self, start: Start) -> None:
        """Tell the client to forget its position."""

    @abstractmethod
    def _encode(self, message: Stored) -> str | bytes | None:
        """Return the frame of a message; None if this client does not get it.

        Raises:
            MalformedMessage: It cannot be a frame.
        """

    @abstractmethod
    def _on_confirmed(self) -> None:
        """Note that the client has more than before."""

    # -- where it begins -----------------------------------------------------------------

    def begin(self, start: Start) -> None:
        """Deliver what comes after *start*; the client knows where that is."""
        self.epoch = start.epoch
        self.window.start(start.offset)
        self._note(start)
        if start.batch is not None:
            self.window.begin_fetch()
            self._take(start.batch)
        self.wake()

    def _note(self, start: Start) -> None:
        """Note what the client knows of its past."""
        recovered = start.reason is None
        self._told = -1 if recovered else start.offset
        self._proved = start.offset if recovered else -1
        self._fetched = 0
        self._written = self._drained = start.offset

    def restart(self, position: Position, reason: Reason, since: str) -> None:
        """Begin at the start of the log: the client's offsets mean nothing any more.

        See `wsgateway.broker.subscriptions.Subscriber.restart`.
        """
        self._restart = Start(position.epoch, 0, reason)
        self.wake()

    def _changed(self) -> bool:
        """Whether offsets of the window mean nothing any more; each wait may make it true."""
        return self._restart is not None or self.closed

    async def _begin_again(self) -> None:
        await self._stop_fetching()  # it must not bring what belongs to the log before
        start, self._restart, self._trimmed = self._restart, None, False
        if start is not None:
            self.epoch = start.epoch
            self.window.restart(start.offset)
            self._note(start)
            await self._tell_restart(start)

    def close(self) -> None:
        """Write nothing more, and give the session's credit back. Idempotent."""
        if not self.closed:
            self.closed = True
            self._session.hub.cursors.undrained.discard(self)
            self.window.close()
            if self._fetching is not None:
                self._fetching.cancel()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """What reads from the log at the moment; None: nothing does."""
        return self._fetching

    # -- to the client -------------------------------------------------------------------

    def wake(self) -> None:
        """Have the session's writer look at the window, soon."""
        if not self._is_due:
            self._is_due = True
            self._session.writer.add(self)

    async def write(self) -> None:
        """Write what the window says, and read what it asks for. See `Source`."""
        self._is_due = False
        while not self.closed:
            if self._restart is not None:
                await self._begin_again()
            if self._trimmed:
                self._trimmed = False
                # What is on its way stays there: the client goes on from what it confirmed.
                start = Start(self.epoch, self.window.confirmed, Reason.TRIMMED)
                await self._tell_trimmed(start)
            await self._write_ready()
            if not self._acknowledges and self.undrained and self.window.room <= 0:
                await self._session.socket.transport.drained()
                self.confirm_drained()
            # Each wait may have been the one in which something came that is told first
            if not self._interrupted():
                break
        if self.window.wants_fetch:
            self._fetch_soon()

    def _interrupted(self) -> bool:
        """Whether something is to be told before the next message."""
        return self._restart is not None or self._trimmed or self.closed

    async def _write_ready(self) -> None:
        """Write the messages that are ready."""
        window, write = self.window, self._session.socket.write
        encode, acknowledges = self._encode, self._acknowledges
        while not self._interrupted() and (message := window.take()) is not None:
            assert isinstance(message, Stored)
            try:
                frame = encode(message)
                if frame is not None:
                    traced = message.trace is not None
                    send = partial(deliver, self._session, self, message) if traced else write
                    if await send(frame) and not acknowledges:
                        self._drained = self._written  # before it
                    if not message.offset % SAMPLE:
                        self._observe_lag(message)
            except MalformedMessage as exc:
                log_fields = self._session.socket.transport.log_fields
                self._session.hub.note_skipped(message, exc, log_fields)
                window.drop(message.offset)
            if not acknowledges:
                self._written = message.offset
                if (drained := self.drained) > window.confirmed:
                    self.confirm(drained)
        if not acknowledges:
            self.confirm_drained()

    def _observe_lag(self, message: Stored) -> None:
        """Count how long ago a message was stored, by whether it came live."""
        gateway = counters.gateway
        lag = gateway.fetched_lag if message.offset <= self._fetched else gateway.live_lag
        with contextlib.suppress(ValueError, OverflowError):  # a publisher's own header
            lag.observe(time() - datetime.fromisoformat(message.time).timestamp())

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
        if self._changed():
            return False  # *offset* belongs to what was before
        if not self.window.confirm(offset):
            return False
        self._on_confirmed()
        if self.window.wants_fetch:  # there is credit now
            self.wake()
        return True

    # -- from the log --------------------------------------------------------------------

    def _fetch_soon(self) -> None:
        """Read in a task of its own, so that the session's other subscriptions do not wait."""
        if self._fetching is None and not self._changed():
            self._fetching = start(self._fetch(), "wsgateway-fetch", on_end=self._on_fetch_end)

    def _on_fetch_end(self, error: BaseException | None) -> None:
        self._fetching = None
        self._session.on_failure(error)
        if self.window.wants_fetch and not self.closed:
            self.wake()

    async def _stop_fetching(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _fetch(self) -> None:
        broker = self._session.hub.broker
        try:
            while self.window.wants_fetch and not self._changed():
                found = await fetch(broker, self, self._read, self._changed)
                if found is None:
                    continue
                batch, trimmed = found
                self._trimmed = self._trimmed or trimmed
                self._take(batch)
                self.wake()
        except BrokerClosed:
            await self._session.close(CloseCode.SHUTTING_DOWN)

    def _take(self, batch: Batch) -> None:
        """Queue what was read after the window's position."""
        counters.gateway.fetched += len(batch.messages)
        self.window.fetched(batch.messages, more=batch.more)
        self._fetched = self.window.position

    async def _read(self, offset: int, limit: int) -> tuple[Batch, bool]:
        """Return what was read, and whether the client must hear that messages may be missing."""
        told = self._session.endpoint.resumes
        counters.gateway.fetches += 1
        batch = await self._log.read_after(self.address, offset, limit=limit, anchor=told)
        return batch, told and await self._is_trimmed(offset, batch)

    async def _is_trimmed(self, offset: int, batch: Batch) -> bool:
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
