"""One socket's session: its delivery, and what its client sends.

`Session` joins inbox, broker and socket; nothing else does. Its one task writes what the
`Window` says and reads what it asks for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsgateway.broker.messages import (
    CONNECTION_HEADER,
    DEVICE_HEADER,
    RESOLVER_HEADER,
    Batch,
    Position,
    Receipt,
    Stored,
)
from wsgateway.broker.recovery import LIFE, Start, find_start, nothing_trimmed
from wsgateway.broker.subscriptions import wait_usable
from wsgateway.conf import settings
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    MalformedMessage,
)
from wsgateway.gateway.cursors import Cursor
from wsgateway.gateway.publish_queue import NONE, PublishQueue
from wsgateway.gateway.sockets import Socket, SocketClosed
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, encode_token
from wsgateway.protocol.v1 import Reason, Resume
from wsgateway.protocol.window import Credit, Window

if TYPE_CHECKING:
    from wsgateway.gateway.hub import Hub

__all__ = ["Session"]

logger = logging.getLogger("wsgateway")

NEW_COOKIE = (2.0, 4.0)
"""Seconds that a client waits for its new cookie: the session is rotated while the response that
brings it is still being made. One that came at once would be refused, and stop."""
LAG_PAUSE = 0.02
"""First pause before a lagging replica is asked again, seconds; doubles up to LAG_CAP."""
LAG_CAP = 2.0


class Session:
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
        "publish_queue",
        "socket",
        "window",
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
        socket.session = self
        self.window = Window(Credit(settings.WINDOW))
        self.publish_queue = PublishQueue(
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
        """Life of the stream that the window's offsets belong to; empty before the start."""
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
        self.window.start(start.offset)
        self._note(start)
        if claim.offset is not None:
            self._hub.confirmed(self, start.offset)
        self._task = asyncio.create_task(self._run(), name="wsgateway-session")

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

    def restart(self, position: Position, reason: Reason, since: str) -> None:
        """Begin at the start of the inbox: the client's offsets mean nothing any more."""
        if reason is Reason.AHEAD:
            self._hub.lost(self)
        self._anew = Start(position.epoch, 0, reason)
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
        if not self.window.confirm(offset):
            return False
        self._hub.confirmed(self, self.window.confirmed)
        if self.window.wants_fetch:
            self.wake()
        return True

    def wake(self) -> None:
        """Let the task look again."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        window = self.window
        try:
            while True:
                await self._write_ready()
                if self.socket.unsettled and window.room <= 0:
                    await self.socket.transport.drained()
                    self.settle()
                # Each wait may have been the one in which the stream changed: look at all that
                # may wake this task, and then sleep at once.
                if self._anew is not None:
                    await self._begin_anew(self._anew)
                elif window.wants_fetch:
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
        """Whether offsets of the window mean nothing any more; each wait may make it true."""
        return self._anew is not None

    async def _begin_anew(self, start: Start) -> None:
        self._anew = None
        self._lives += 1
        self.epoch = start.epoch
        self.window.restart(start.offset)
        self._note(start)
        await self.socket.begin(start)
        if self._unnamed:  # its acknowledgements may come too late to be told apart
            await self.socket.close(CloseCode.STREAM_REPLACED)

    async def _write_ready(self) -> None:
        window = self.window
        write, acknowledges = self.socket.write, self.socket.acknowledges
        while not self._changed() and (message := window.take()) is not None:
            assert isinstance(message, Stored)
            try:
                await write(message)
            except MalformedMessage as exc:
                self._hub.note_skipped(message.offset, exc)
                window.drop(message.offset)
                self.socket.skip(message.offset)
            if not acknowledges and (settled := self.socket.settled) > window.confirmed:
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
        window, broker, told = self.window, self._hub.broker, self.socket.acknowledges
        pause = LAG_PAUSE
        while window.wants_fetch and not self._changed():
            if window.lagging:
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAG_CAP)
            offset, room = window.begin_fetch()
            try:
                batch = await broker.read_after(
                    self.inbox, offset, limit=min(room, 1000), anchor=told
                )
                trimmed = told and await self._trimmed(offset, batch)
            except BrokerClosed:
                raise
            except BrokerError as exc:
                window.fetch_failed()
                logger.debug("cannot read an inbox now: %s", exc)
                await wait_usable(broker)
                continue
            if self._changed():
                window.fetch_failed()  # what was read may be of either stream
                return
            if trimmed:
                self._hub.counts["trimmed"] += 1
                # What is on its way stays there: the client goes on from what it confirmed.
                await self.socket.begin(Start(self.epoch, window.confirmed, Reason.TRIMMED))
            window.fetched(batch.messages, more=batch.more)
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
        """Publish what the client sent; waits while too much is in flight, see `put` there."""
        return await self.publish_queue.put(frame, msg_id, headers)

    def _offer(
        self, frame: Frame, msg_id: str, headers: Mapping[str, str]
    ) -> asyncio.Future[Receipt]:
        return self._hub.broker.offer(self.inbox, frame, msg_id, {**self._sender, **headers})
