"""One socket's session: what its client sends, and what it is sent.

`Session` joins socket, endpoint, broker and subscriptions; nothing else does. The module is long
because of that: what could decide by itself is in `protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wsgateway import counters, declared
from wsgateway.broker.recovery import Start
from wsgateway.conf import settings
from wsgateway.counters import SocketCounters, size_of
from wsgateway.exceptions import BrokerClosed
from wsgateway.gateway.inbox import InboxSubscription
from wsgateway.gateway.publishing import Publisher
from wsgateway.gateway.renewal import renew
from wsgateway.gateway.sockets import Socket, SocketClosed
from wsgateway.gateway.subscription import Subscription
from wsgateway.gateway.topics import SocketTopics
from wsgateway.gateway.watches import SocketWatches
from wsgateway.gateway.writer import Writer
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.credit import Credit
from wsgateway.protocol.endpoint import (
    Access,
    Answer,
    Client,
    Close,
    Confirm,
    EndWatch,
    Publish,
    Renew,
    StartWatch,
    Subscribe,
    Unsubscribe,
)
from wsgateway.protocol.subjects import Address, Topic
from wsgateway.protocol.v1 import Resume
from wsgateway.supervision import start

if TYPE_CHECKING:
    from wsgateway.gateway.hub import Hub

__all__ = ["Session"]

logger = logging.getLogger("wsgateway")

MAX_ANSWERS = 1000
"""Answers that may wait for a client before nothing more is taken from it."""
NEW_COOKIE = (2.0, 4.0)
"""Seconds that a client waits for its new cookie: the session is rotated while the response that
brings it is still being made. One that came at once would be refused, and stop."""
NO_SCOPE: Mapping[str, Any] = {}


class Session:
    """One socket. `start` it to end the handshake, `stop` it when the socket is gone.

    Args:
        hub: The loop's hub.
        identity: Whose socket.
        socket: Writes and closes.
        scope: The connection's, which says where the client is and what it is.
    """

    __slots__ = (
        "__weakref__",
        "_busy",
        "_counters",
        "_left",
        "_loop",
        "_now",
        "_timer",
        "_topics",
        "_watches",
        "_writing",
        "connection",
        "credit",
        "endpoint",
        "hub",
        "identity",
        "inbox",
        "inbox_subscription",
        "is_announced",
        "log_fields",
        "publisher",
        "reconnect_after",
        "scope",
        "since",
        "socket",
        "subscriptions",
        "writer",
    )

    def __init__(
        self, hub: Hub, identity: Identity, socket: Socket, scope: Mapping[str, Any] = NO_SCOPE
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self.hub = hub
        self.identity = identity
        self.socket = socket
        self.scope = scope
        self.since = time.time()
        """When it began, seconds since 1970."""
        self.endpoint = socket.endpoint
        self.inbox = identity.inbox
        """The user's, where answers go and from where the client publishes."""
        self.connection = uuid.uuid4().hex
        """Names this socket; part of what services get."""
        self.reconnect_after: float | None = None
        """Seconds after which the client was told to come back, once it was."""
        self.is_announced = False
        """Whether `SocketEvents` has said that it is connected, and not yet that it is gone."""
        self.credit = Credit(max(settings.WINDOW, settings.SOCKET_WINDOW), settings.WINDOW)
        """What may be in flight, of all subscriptions."""
        self.writer = Writer(socket)
        """Writes what they read."""
        self.inbox_subscription = InboxSubscription(self, self.inbox)
        """Reads the user's messages."""
        self.subscriptions: dict[Address, Subscription] = {self.inbox: self.inbox_subscription}
        """What the client reads and acknowledges."""
        self.publisher = Publisher(self)
        """Takes what the client sends."""
        self._timer: asyncio.TimerHandle | None = None  # the heartbeat's
        self._counters: SocketCounters | None = None  # where it counts as open
        self._left = 1006  # the code with which the client closed; this one if it did not say
        self._writing: asyncio.Task[None] | None = None  # the writer, once the socket is open
        # Made for the first one
        self._watches: SocketWatches | None = None
        self._topics: SocketTopics | None = None
        self._busy = False  # a frame is being taken; nothing is heard until that is done
        self.log_fields = socket.transport.log_fields
        """Names the socket in the log."""
        self.log_fields |= {
            "gateway": hub.gateway_id,
            "service": identity.service,
            "user": identity.user,
            "device": identity.device,
            "connection": self.connection,
        }
        socket.on_failure = self.on_failure
        socket.transport.on_hidden_frame = self._on_hidden_frame
        socket.transport.on_end = self._on_end

    # -- life cycle ----------------------------------------------------------------------

    async def open_topics(self, questions: Sequence[Subscribe]) -> None:
        """Begin to read topics before `start`; call `give_up` if that is not reached.

        Raises:
            IdentityRefused: The client may not read one of them, or has too many sockets here.
        """
        if questions:
            self.hub.require_room(self.identity)
            self._topics = SocketTopics(self)
            await self._topics.begin_all(questions)

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
        inbox = self.inbox_subscription
        try:
            async with self.hub.starting:  # not while the client is written to: it may not read
                if self.socket.transport.gone:
                    raise SocketClosed
                self.hub.attach(self)
                begin = await inbox.find_start(claim)
            await self.socket.accept()
            await self.welcome(begin)
        except SocketClosed:
            self.give_up()
            # Nobody reads it, but uvicorn's websockets implementation wants an answer
            await self.socket.close(CloseCode.BAD_REQUEST)
            return
        except BaseException:
            self.give_up()
            raise
        self.endpoint.open(self._now())
        self._set_timer()
        if claim.offset is not None and self.endpoint.moves_cursor:
            self.hub.cursors.confirm(inbox.cursor, begin.epoch, begin.offset)
        self._count_begin()
        logger.debug("opened %s", self.socket.transport.where, extra=self.log_fields)
        inbox.begin(begin)
        self._writing = start(self._write(), "wsgateway-session", on_end=self.on_failure)
        self.hub.events.connected(self)

    def give_up(self) -> None:
        """Undo what was done for a socket that has not begun. Idempotent."""
        if self._topics is not None:
            self._topics.close()
        self.hub.detach(self)

    async def welcome(self, begin: Start) -> None:
        """Tell the client where delivery begins, the first time or again."""
        self.endpoint.fit_broker(self.hub.broker.largest_offer)
        identity = self.identity
        names = identity.service, identity.user, identity.device
        client = Client(self.connection, *names, identity.expires_in)
        frame = self.endpoint.welcome(client, begin)
        if frame is not None:
            counters.gateway.starts[begin.reason or "recovered"] += 1
            await self.write_other(frame)

    async def welcome_again(self, begin: Start) -> None:
        """Tell the client to forget its position."""
        close = self.endpoint.restart()
        await self.welcome(begin)
        if close is not None:
            await self.close(close.code)

    async def _write(self) -> None:
        try:
            await self.writer.run()
        except BrokerClosed:
            await self.close(CloseCode.SHUTTING_DOWN)

    def on_failure(self, error: BaseException | None) -> None:
        """Close the socket when a task of the session has failed; `start` has logged *error*."""
        if error is not None:
            self.close_soon(CloseCode.INTERNAL_ERROR)

    async def stop(self) -> None:
        """End delivery; what the client has is saved, what it sent and is stored stays."""
        self.socket.end()
        if self._watches is not None:
            self._watches.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._writing is None:
            return
        reading = [each.task for each in self.subscriptions.values() if each.task is not None]
        for task in (self._writing, *reading):
            task.cancel()
        await asyncio.wait([self._writing, *reading], timeout=1.0)
        self.inbox_subscription.confirm_drained()
        self._count_end()
        if self._topics is not None:
            self._topics.close()
        log_fields = {**self.log_fields, "code": self.close_code}
        where = self.socket.transport.where
        logger.debug("%s ended with %d", where, self.close_code, extra=log_fields)
        saves = self.hub.detach(self)
        self.hub.events.disconnected(self)
        if saves:
            await asyncio.wait(saves, timeout=settings.CLOSE_TIMEOUT / 4)  # the hub keeps them

    async def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Close the socket; say first when to come back, if that must not be at once. Idempotent.

        Args:
            code: Why.
            reason: What the client is told; None: what *code* means.
        """
        if self.socket.closed:
            return
        if self.endpoint.announces(code):
            self.reconnect_after = self._reconnect_after(code)
            frame = self.endpoint.closing(self.reconnect_after)
            with contextlib.suppress(SocketClosed, TimeoutError):
                async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):  # it may not read
                    await self.write_other(frame)
        self.inbox_subscription.confirm_drained()  # before the close frame waits, too
        await self.socket.close(code, reason)

    def close_soon(self, code: CloseCode, reason: str | None = None) -> None:
        """Close the socket from a callback, see `close`; nothing more is taken from it."""
        self.endpoint.stop()
        self.hub.keep(self.close(code, reason))

    def _reconnect_after(self, code: CloseCode) -> float:
        """Return the seconds after which this client is to come back, random within bounds."""
        if code is CloseCode.CREDENTIALS_CHANGED:
            return random.uniform(*NEW_COOKIE)  # noqa: S311 - jitter, no secret
        return self.hub.reconnect_after()

    async def write_other(self, frame: str) -> None:
        """Write a frame that is not a message."""
        await self.socket.write(frame)
        self.socket.traffic.others_out += 1

    def left(self, code: int | None) -> None:
        """Note with which code the client, or its server, says that the socket ended."""
        self._left = 1006 if code is None else code

    @property
    def close_code(self) -> int:
        """The gateway's close code, or else the client's; 1006 if nobody gave one."""
        ours = self.socket.close_code
        return self._left if ours is None else int(ours)

    def _count_begin(self) -> None:
        """Count the socket as open; a service that nobody has declared counts as ``*``."""
        service = self.inbox.service
        if service not in self.hub.broker.service_names and service not in declared.registered:
            service = declared.ANY
        protocol = self.endpoint.subprotocol or counters.RAW
        self._counters = counters.gateway.sockets_of(service, protocol)
        self._counters.begin(self.socket.traffic)

    def _count_end(self) -> None:
        if self._counters is None:
            return
        self._counters.end(self.socket.traffic)
        self._counters = None
        counters.gateway.unconfirmed += sum(
            each.window.unconfirmed for each in self.subscriptions.values()
        )
        ours = self.socket.close_code
        if ours is None:
            counters.gateway.note_end("client", self._left)
        else:
            counters.gateway.note_end("gateway", ours)

    # -- from the client -----------------------------------------------------------------

    async def receive(self, frame: str | bytes) -> None:
        """Do what a frame of the client leads to."""
        self._busy = True
        traffic = self.socket.traffic
        traffic.frames_in += 1
        traffic.bytes_in += len(frame) if frame.isascii() else size_of(frame)
        try:
            if self.socket.unwritten >= MAX_ANSWERS or self.writer.frames >= MAX_ANSWERS:
                await self._answers_written()
            action = self.endpoint.receive(frame, self._now())
            if isinstance(action, Confirm):
                confirmed = self.subscriptions.get(action.topic or self.inbox)
                if confirmed is not None and confirmed.confirm(action.offset):
                    self.endpoint.progressed()
            elif isinstance(action, Publish):
                await self.publisher.publish(action)
            elif isinstance(action, Close):
                self._log(logging.INFO, action)
                await self.close(action.code, action.reason)
            elif isinstance(action, StartWatch | EndWatch):
                self._watch(action)
            elif isinstance(action, Renew):
                await renew(self, action.token)
            elif isinstance(action, Subscribe | Unsubscribe):
                self._subscribe(action)
            else:
                self.do(action)
        finally:
            self._busy = False

    async def _answers_written(self) -> None:
        """Take nothing from a client that does not read its answers; in the end, close."""
        for written in (self.socket.answers_written, self.writer.frames_written):
            if not await written(MAX_ANSWERS):
                await self.close(CloseCode.TOO_SLOW)

    def do(self, action: Answer | Close | None) -> None:
        """Answer or close, from a callback."""
        if isinstance(action, Answer):
            if action.refused is not None:
                counters.gateway.refused_subscriptions[action.refused] += 1
            self.socket.answer(action.text)
        elif action is not None:
            self._log(logging.WARNING, action)
            self.close_soon(action.code, action.reason)

    def _log(self, level: int, close: Close) -> None:
        if close.cause is not None:
            where, codes = self.socket.transport.where, self.socket.codes(close.code)
            log_fields = {**self.log_fields, "code": int(close.code)}
            logger.log(level, "closed %s with %s: %s", where, codes, close.cause, extra=log_fields)

    def _watch(self, action: StartWatch | EndWatch) -> None:
        if self._watches is None:
            self._watches = SocketWatches(self, self.hub.watching)
        if isinstance(action, StartWatch):
            self._watches.begin(action.target, action.token)
        else:
            self._watches.end(action.target)

    def _subscribe(self, action: Subscribe | Unsubscribe) -> None:
        if self._topics is None:
            self._topics = SocketTopics(self)
        if isinstance(action, Subscribe):
            self._topics.begin(action)
        else:
            self._topics.end(action)

    def access(self, topic: Topic) -> Access | None:
        """Return what the client may do with a topic that it reads; None if it does not read it."""
        return None if self._topics is None else self._topics.access(topic)

    def _on_hidden_frame(self) -> None:
        """Count a frame that only the server sees, such as a ping, which it answers."""
        close = self.endpoint.hidden_frame(self._now())
        if close is not None:
            # uvloop reads many times before anything else runs
            self.socket.transport.stop_parsing()
            self.close_soon(close.code)

    def _on_end(self) -> None:
        """Take nothing more, not even what the server has read already."""
        self.endpoint.stop()
        self.publisher.give_up()

    def _set_timer(self) -> None:
        if (deadline := self.endpoint.deadline) is not None:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        now = self._now()
        self.do(self.endpoint.check(now, busy=self._busy))
        self._set_timer()
