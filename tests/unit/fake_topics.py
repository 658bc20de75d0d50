"""The topics of a `FakeGateway`: logs in memory, each with a window for each connection."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import NamedTuple

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.endpoint import Access, Subscribe
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.readership import Present
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1 import Ack, ErrorCode, Reason, UnsubscribeFrom
from wsgateway.protocol.v1.messages import UnwatchTopic, WatchTopic
from wsgateway.protocol.v1.presence import (
    encode_readers,
    encode_readers_changed,
    encode_topic_unwatched,
)


class _Start(NamedTuple):
    epoch: str
    offset: int
    reason: str | None


@dataclass
class FakeTopic:
    """One topic; *access* None: nobody may read it."""

    name: str
    access: Access | None = "write"
    durable: bool = True
    answers: bool = True  # questions
    epoch: str = "r1"
    token: str | None = None  # that clients must send
    window: int = 8
    log: list[tuple[int, Frame]] = field(default_factory=list)
    acks: list[tuple[int, str | None]] = field(default_factory=list)
    asked: list[Subscribe] = field(default_factory=list)
    refusals: list[ErrorCode] = field(default_factory=list)  # of the next questions
    readers: dict[ServerConnection, _Reader] = field(default_factory=dict)
    users: list[Inbox] = field(default_factory=list)  # who reads it, as those who watch are told
    watches: list[WatchTopic] = field(default_factory=list)  # that were asked for
    watchers: set[ServerConnection] = field(default_factory=set)
    unwatched: int = 0  # how often a client said so

    async def store(self, *data: str) -> None:
        for item in data:
            self.log.append((self.log[-1][0] + 1 if self.log else 1, Frame.of(item)))
        for reader in list(self.readers.values()):
            await reader.write()

    async def end(self, code: ErrorCode) -> None:
        """Withdraw the right of everybody who reads it."""
        for connection in list(self.readers):
            del self.readers[connection]
            await connection.send(protocol.encode_unsubscribed(self.name, code))

    async def change_users(self, *users: str) -> None:
        """Tell those who watch who reads it now."""
        before, self.users = set(self.users), [Inbox("orders", user) for user in users]
        told, now = (Present(frozenset(each), 0, True) for each in (before, self.users))
        for connection in list(self.watchers):
            text = encode_readers_changed(Topic.parse(self.name), told, now)
            await connection.send(text)

    async def withdraw_watches(self) -> None:
        """Withdraw the right to see who reads it."""
        for connection in list(self.watchers):
            text = encode_topic_unwatched(Topic.parse(self.name), ErrorCode.FORBIDDEN, "no more")
            await connection.send(text)
        self.watchers.clear()

    async def take(self, connection: ServerConnection, frame: object) -> None:
        """Do what a client's frame about this topic asks for."""
        if isinstance(frame, Subscribe):
            self.asked.append(frame)
            if not self.answers:
                return
            if code := self._refuse(frame):
                text = protocol.encode_unsubscribed(self.name, code, "no", frame.id)
                await connection.send(text)
                return
            await self._begin(connection, frame)
        elif isinstance(frame, WatchTopic):
            await self._watch(connection, frame)
        elif isinstance(frame, UnwatchTopic):
            self.watchers.discard(connection)
            self.unwatched += 1
        elif isinstance(frame, UnsubscribeFrom):
            self.readers.pop(connection, None)
            await connection.send(protocol.encode_unsubscribed(self.name))
        elif isinstance(frame, Ack):
            self.acks.append((frame.offset, frame.epoch))
            if connection in self.readers:
                self.readers[connection].acked = frame.offset
                await self.readers[connection].write()

    async def _watch(self, connection: ServerConnection, frame: WatchTopic) -> None:
        self.watches.append(frame)
        if frame.token != self.token:
            await connection.send(protocol.encode_error(frame.id, ErrorCode.FORBIDDEN, "no"))
        elif self.answers:
            self.watchers.add(connection)
            present = Present(frozenset(self.users), 0, True)
            await connection.send(encode_readers(frame.id, frame.topic, present))

    def _refuse(self, frame: Subscribe) -> ErrorCode | None:
        if self.refusals:
            return self.refusals.pop(0)
        return ErrorCode.FORBIDDEN if self.access is None or frame.token != self.token else None

    async def _begin(self, connection: ServerConnection, frame: Subscribe) -> None:
        assert self.access is not None
        last = self.log[-1][0] if self.log else 0
        start = _Start(self.epoch, {"new": last, "all": 0}.get(str(frame.since), 0), Reason.NEW)
        if frame.offset is not None:
            same = frame.epoch == self.epoch
            start = _Start(self.epoch, frame.offset if same else 0, None if same else Reason.EPOCH)
        elif isinstance(frame.since, int):
            start = _Start(self.epoch, max(last - frame.since, 0), Reason.NEW)
        where = start if self.durable else None
        text = protocol.encode_subscribed(self.name, self.access, where, self.epoch, frame.id)
        await connection.send(text)
        self.readers[connection] = _Reader(self, connection, start.offset, start.offset)
        await self.readers[connection].write()


@dataclass
class _Reader:
    topic: FakeTopic
    connection: ServerConnection
    position: int
    acked: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def write(self) -> None:
        """Write what the window allows."""
        with contextlib.suppress(ConnectionClosed):
            async with self.lock:
                for offset, frame in [each for each in self.topic.log if each[0] > self.position]:
                    waiting = [each for each, _ in self.topic.log if self.acked < each < offset]
                    if self.topic.durable and len(waiting) >= self.topic.window:
                        return
                    self.position = offset
                    stored = offset if self.topic.durable else 0
                    text = protocol.encode_topic_message(
                        self.topic.name, stored, f"t{offset}", *frame, Inbox("orders", "bob")
                    )
                    await self.connection.send(text)
