"""Durable groups: messages are stored in the inbox stream, and read from it in its order.

Each member has its own position. What does not fit its mailbox waits in the stream, so nobody
misses anything because of capacity, expiry, a reconnect or a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from channels.exceptions import MessageTooLarge

from wsgateway.broker.base import Closable, Stored
from wsgateway.broker.nats.link import Backoff
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerError, MessageTooBig
from wsgateway.frames import EVENT, Frame
from wsgateway.inbox import InboxReader
from wsgateway.layer import wire
from wsgateway.subjects import GROUP_SERVICE, Inbox

if TYPE_CHECKING:
    from wsgateway.layer.loops import Node
    from wsgateway.layer.mailbox import Mailbox

__all__ = [
    "DurableItem",
    "Feed",
    "claim_of",
    "event_of",
    "frame_event",
    "inbox_of",
    "payload_of",
    "store",
]

logger = logging.getLogger("wsgateway.layer")

FRAME_TYPE = "ws.message"
"""The type of an event that is nothing but a websocket frame."""


def inbox_of(group: str) -> Inbox | None:
    """Return where a durable group is stored; None if *group* is not durable."""
    service, dot, user = group.partition(".")
    if dot and service and user and "." not in user:
        return Inbox(service, user)
    if any(fnmatch.fnmatchcase(group, pattern) for pattern in settings.DURABLE_GROUPS):
        return Inbox(GROUP_SERVICE, group)
    return None


def payload_of(
    message: dict[str, Any], pack: Callable[[dict[str, Any]], bytes]
) -> tuple[bytes, str]:
    """Return the payload and the kind under which *message* is stored.

    An event that is nothing but a frame is stored as that frame, so that the gateway's sockets
    and other languages can read it.
    """
    if len(message) == 2 and message.get("type") == FRAME_TYPE:
        data = message.get("text", message.get("bytes"))
        if isinstance(data, str if "text" in message else bytes):
            frame = Frame.of(data)
            return frame.payload, frame.kind
    data = pack(message)
    if len(data) > wire.COMPRESS_OVER or wire.is_enveloped(data):
        data = wire.compress(wire.pack(0.0, b"", data))
    return data, EVENT


def event_of(stored: Stored, unpack: Callable[[bytes], Any], limit: int) -> dict[str, Any]:
    """Return the event that a stored message means.

    Args:
        stored: The message.
        unpack: Undoes what `payload_of` was given as *pack*.
        limit: Bytes that it may have once decompressed.

    Raises:
        Exception: Whatever *unpack* raises, or `MalformedMessage`.
    """
    if stored.kind == EVENT:
        data = stored.payload
        event: dict[str, Any] = unpack(wire.body(data, limit) if wire.is_enveloped(data) else data)
        return event
    return frame_event(stored.payload, stored.kind)


def frame_event(payload: bytes, kind: str | None) -> dict[str, Any]:
    """Return the event that a plain frame means."""
    frame = Frame.parse(payload, kind)
    return {"type": FRAME_TYPE, "text" if frame.text else "bytes": frame.data}


async def store(node: Node, group: str, payload: bytes, kind: str) -> None:
    """Store a durable group's message; retried until the deadline, stored at most once.

    Raises:
        MessageTooLarge: It is a frame, which has to fit one message of the server.
        BrokerError: It is not stored, or nobody knows.
    """
    inbox = inbox_of(group)
    if inbox is None:
        raise ValueError(f"group {group!r} is not durable any more")
    try:
        await node.broker.publish(inbox, payload, kind=kind)
    except MessageTooBig as exc:
        if kind != EVENT:
            raise MessageTooLarge(
                f"{exc}; a {FRAME_TYPE} is stored as the frame itself, for sockets and other "
                "languages to read: send less, raise max_payload, or send an event of another type"
            ) from exc
        data = payload if wire.is_enveloped(payload) else wire.pack(0.0, b"", payload)
        claim = await node.blobs.store(data)
        await node.broker.publish(inbox, claim, kind=kind)


def claim_of(stored: Stored) -> bytes | None:
    """Return the claim that stands for a stored message; None if it is the message itself."""
    data = stored.payload
    if stored.kind == EVENT and wire.is_enveloped(data) and wire.is_claim(data):
        return data
    return None


class DurableItem:
    """A stored message in a member's mailbox."""

    __slots__ = ("_feed", "stored")

    def __init__(self, feed: Feed, stored: Stored) -> None:
        self._feed = feed
        self.stored = stored

    def take(self) -> Stored:
        """Return the message and make room for another. Call it once, from any thread."""
        self._feed.confirm(self.stored.offset)
        return self.stored


class _Watch:
    """One inbox' live subscription and the feeds that share it."""

    def __init__(self, node: Node, inbox: Inbox) -> None:
        self.feeds: list[Feed] = []
        self._interest = node.broker.watch(inbox, self._on_message)

    def _on_message(self, stored: Stored) -> None:
        for feed in self.feeds:
            feed.on_live(stored)

    def close(self) -> None:
        self._interest.close()


class _Watcher:
    """All durable groups of one node: shares subscriptions, looks for what they missed."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._watches: dict[Inbox, _Watch] = {}
        self._epoch = ""
        self._sweeping: asyncio.Task[None] | None = None
        self._look = asyncio.Event()  # set on a reconnect
        self._on_ready: Closable | None = None

    def add(self, feed: Feed) -> None:
        watch = self._watches.get(feed.inbox)
        if watch is None:
            watch = self._watches[feed.inbox] = _Watch(self._node, feed.inbox)
        watch.feeds.append(feed)
        if self._sweeping is None:
            self._on_ready = self._node.broker.on_ready(self._look.set)
            self._sweeping = asyncio.create_task(self._sweep(), name="wsgateway-layer-sweep")

    def remove(self, feed: Feed) -> None:
        watch = self._watches.get(feed.inbox)
        if watch is None or feed not in watch.feeds:
            return
        watch.feeds.remove(feed)
        if not watch.feeds:
            del self._watches[feed.inbox]
            watch.close()
        if not self._watches and self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
            if self._on_ready is not None:
                self._on_ready.close()

    async def _sweep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(settings.SWEEP_INTERVAL):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await self._find_missed()
            except BrokerError as exc:
                logger.debug("cannot look for missed messages: %s", exc)
                if self._node.link.is_open:
                    await asyncio.sleep(0.5)
                    self._look.set()

    async def _find_missed(self) -> None:
        before = [(feed, feed.reader.position) for feed in self._feeds()]
        position = await self._node.broker.position()
        if self._epoch and position.epoch != self._epoch:
            logger.warning("the inbox stream is a new one; durable groups begin at its start")
            for feed in self._feeds():
                feed.restart(0)
        self._epoch = position.epoch
        for feed, reached in before:
            if reached > position.last:  # the server has lost its end, with power for example
                feed.restart(position.last)
        offsets = await self._node.broker.last_offsets(list(self._watches))
        for inbox, offset in offsets.items():
            for feed in list(self._watches[inbox].feeds if inbox in self._watches else ()):
                feed.announce(offset)

    def _feeds(self) -> list[Feed]:
        return [feed for watch in self._watches.values() for feed in watch.feeds]


_watchers: weakref.WeakKeyDictionary[Node, _Watcher] = weakref.WeakKeyDictionary()


class Feed:
    """Brings a durable group's messages into one member's mailbox, in order, none left out.

    Keeps its position when it moves to another node.

    Args:
        inbox: Where the group is stored.
        mailbox: The member's; its capacity is how many messages may wait there.
    """

    def __init__(self, inbox: Inbox, mailbox: Mailbox[Any]) -> None:
        self.inbox = inbox
        self.reader = InboxReader(mailbox.capacity)
        self._mailbox = mailbox
        self._node: Node | None = None
        self._task: asyncio.Task[None] | None = None  # starts or fetches
        self._started: asyncio.Future[None] | None = None  # done once the position is known
        self._taken = 0  # offset up to which the member has taken everything
        self._backoff = Backoff(0.02, 2.0, 1.0)

    def attach(self, node: Node) -> None:
        """Begin, or go on where it was, in the running loop, which is *node*'s."""
        self._node = node
        watcher = _watchers.get(node)
        if watcher is None:
            watcher = _watchers[node] = _Watcher(node)
        watcher.add(self)
        known = self._started is not None and self._started.done()
        if self._started is None or not known:
            self._started = node.loop.create_future()
            self._spawn(self._start(node))
        else:
            self.reader.confirm(self._taken)
            self.reader.fetch_failed()  # whatever was under way: fetch after the position
            self._step()

    def close(self) -> None:
        """Stop; `attach` goes on."""
        node, self._node = self._node, None
        if node is None:
            return
        watcher = _watchers.get(node)
        if watcher is not None:
            watcher.remove(self)
        if self._task is not None:
            self._task.cancel()

    async def started(self) -> None:
        """Wait until everything stored from now on is sure to come.

        Raises:
            BrokerError: The stream could not be asked.
        """
        if self._started is not None:
            await asyncio.shield(self._started)

    async def _start(self, node: Node) -> None:
        started = self._started
        assert started is not None
        try:
            await node.broker.wait_ready()
            position = await node.broker.position()
        except BaseException as exc:
            self._started = None
            if not started.done():
                started.set_exception(exc if isinstance(exc, Exception) else BrokerError("closed"))
                started.exception()  # nobody may be waiting
            if not isinstance(exc, BrokerError):
                raise
            return
        self.reader.start(position.last)
        if not started.done():
            started.set_result(None)
        self._task = None
        self._step()

    # -- messages ------------------------------------------------------------------------

    def on_live(self, stored: Stored) -> None:
        """Take a message that was just stored."""
        if self.reader.live(stored):
            self._step()

    def announce(self, offset: int) -> None:
        """Take note that the group's messages reach to *offset*."""
        if self.reader.announce(offset):
            self._step()

    def restart(self, offset: int) -> None:
        """Begin anew after *offset*: the stream is another one."""
        self._taken = offset
        self.reader.restart(offset)
        self._step()

    def confirm(self, offset: int) -> None:
        """Make room: the member has taken the message at *offset*. From any thread."""
        self._taken = max(self._taken, offset)
        node = self._node
        if node is None:
            return
        if asyncio._get_running_loop() is node.loop:
            self._confirm(offset)
            return
        with contextlib.suppress(RuntimeError):  # its loop is closed; `attach` makes up for it
            node.loop.call_soon_threadsafe(self._confirm, offset)

    def _confirm(self, offset: int) -> None:
        self.reader.confirm(offset)
        if self.reader.wants_fetch:
            self._step()

    def _step(self) -> None:
        while (stored := self.reader.take()) is not None:
            assert isinstance(stored, Stored)
            self._mailbox.put_always(DurableItem(self, stored))
        if self.reader.wants_fetch and self._node is not None and self._idle():
            self._spawn(self._fetch(self._node))

    def _idle(self) -> bool:
        return self._task is None or self._task.done()

    def _spawn(self, coroutine: Any) -> None:
        self._task = asyncio.create_task(coroutine, name="wsgateway-layer-feed")

    async def _fetch(self, node: Node) -> None:
        attempt = 0
        while self.reader.wants_fetch:
            offset, limit = self.reader.begin_fetch()
            try:
                batch = await node.broker.read_after(self.inbox, offset, limit=min(limit, 1000))
            except BrokerError as exc:
                self.reader.fetch_failed()
                logger.debug("cannot read %s: %s", self.inbox, exc)
            except BaseException:
                self.reader.fetch_failed()
                raise
            else:
                self.reader.fetched(batch.messages, more=batch.more)
                self._deliver()
                if not self.reader.lagging:
                    attempt = 0
                    continue
            await asyncio.sleep(self._backoff.delay(attempt))
            attempt += 1

    def _deliver(self) -> None:
        while (stored := self.reader.take()) is not None:
            assert isinstance(stored, Stored)
            self._mailbox.put_always(DurableItem(self, stored))
