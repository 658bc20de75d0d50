"""The server half of wsgateway.v1 on a real websocket, with an inbox in memory and faults."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tests.support import until
from tests.unit.fake_topics import FakeTopic
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subprotocols import tokens_in
from wsgateway.protocol.v1 import Ack, ClientMessage, ErrorCode, Ping, Resume


class FakeGateway:
    """One user's inbox, and what clients sent."""

    def __init__(self) -> None:
        self.epoch = "e1"
        self.inbox: list[tuple[int, str, Frame]] = []
        self.replies: dict[int, tuple[str, str | None]] = {}  # offset: reply_to and error
        self.requests: list[str] = []  # ids of requests
        self.cursor = 0
        self.window = 8
        self.ping = 25.0
        self.max_message_size = 1000
        self.stored: dict[str, Frame] = {}  # what clients sent, by id, in order
        self.stored_in: dict[str, str | None] = {}  # the topics they were sent to
        self.arrivals: list[str] = []  # ids as they came, repetitions too
        self.acks: list[int] = []
        self.ack_epochs: list[str | None] = []
        self.resumes: list[Resume] = []
        self.queries: list[str] = []
        self.tokens: list[str | None] = []  # of each attempt, from the list of subprotocols
        self.expires_in: float | None = None  # seconds
        self.refreshes: list[str] = []  # tokens
        self.unauthorized = 0  # how many of the next ones are refused
        self.most_unacked = 0
        self.connections: set[ServerConnection] = set()
        self.topics: dict[str, FakeTopic] = {}
        self.refusals: dict[str, ErrorCode] = {}  # by id
        self.before_welcome: list[str] = []  # frames
        self.welcoming = asyncio.Event()  # clear: welcomes wait
        self.welcoming.set()
        self.close_with: list[int] = []  # codes for the next connections, instead of a welcome
        self.status: list[int] = []  # HTTP statuses for the next connections
        self.mute = False  # answer nothing, read nothing
        self.confirm = True  # confirm what is stored
        self.pings = 0  # that clients sent and that were answered
        self.pongs = 0
        self.subprotocols: list[str] | None = [protocol.SUBPROTOCOL]
        self._news = asyncio.Condition()
        self.url = ""

    async def store(self, *data: str | bytes, gap: int = 1) -> None:
        async with self._news:
            for item in data:
                offset = self.inbox[-1][0] + gap if self.inbox else gap
                self.inbox.append((offset, f"t{offset}", Frame.of(item)))
            self._news.notify_all()

    def topic(self, name: str, **options: Any) -> FakeTopic:
        """Return a new topic."""
        self.topics[name] = FakeTopic(name, **options)
        return self.topics[name]

    async def reply(self, id: str, data: str, error: str | None = None) -> None:
        """Do what a service does."""
        offset = self.inbox[-1][0] + 1 if self.inbox else 1
        self.replies[offset] = (id, error)
        await self.store(data)

    def cut(self) -> None:
        """End every connection as a power failure would."""
        for connection in list(self.connections):
            connection.transport.abort()

    async def close_all(self, code: int, reason: str = "") -> None:
        for connection in list(self.connections):
            await connection.close(code, reason)

    def say(self, text: str) -> None:
        for connection in list(self.connections):
            connection.protocol.send_text(text.encode())
            connection.transport.writelines(connection.protocol.data_to_send())

    async def round_trip(self) -> None:
        """Wait until the client has read all that was sent to it, and its answers have come."""
        pongs = self.pongs
        self.say(protocol.encode_ping())
        await until(lambda: self.pongs > pongs)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeGateway]:
        names = [Subprotocol(name) for name in self.subprotocols or []]
        async with serve(
            self._socket,
            "127.0.0.1",
            0,
            subprotocols=names or None,
            process_request=self._request,
            ping_interval=None,
            close_timeout=0.2,
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            self.url = f"ws://127.0.0.1:{port}/ws/orders/ann/"
            yield self

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(self.status.pop(0), "no\n") if self.status else None

    async def _socket(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        query = connection.request.path.partition("?")[2]
        self.queries.append(query)
        offered = connection.request.headers["Sec-WebSocket-Protocol"].split(", ")
        self.tokens.append(next(iter(tokens_in(offered)), None))
        if self.close_with:
            await connection.close(self.close_with.pop(0), "told to")
            return
        resume = protocol.parse_resume(query.encode())
        self.resumes.append(resume)
        self.connections.add(connection)
        state = {"acked": 0}
        writer = None
        try:
            if self.mute:
                await connection.wait_closed()
            position = await self._welcome(connection, resume)
            state["acked"] = position
            writer = asyncio.create_task(self._write(connection, position, state))
            async for text in connection:
                await self._read(connection, protocol.parse_client(text), state)
        except ConnectionClosed:
            pass
        finally:
            self.connections.discard(connection)
            for topic in self.topics.values():
                topic.readers.pop(connection, None)
                topic.watchers.discard(connection)
            if writer is not None:
                writer.cancel()
                await asyncio.wait({writer})

    async def _welcome(self, connection: ServerConnection, resume: Resume) -> int:
        reason, position = None, self.cursor
        if resume.offset is not None:
            position = resume.offset
            if resume.epoch != self.epoch:
                position, reason = 0, protocol.Reason.EPOCH
        for text in self.before_welcome:
            await connection.send(text)
        await self.welcoming.wait()
        await connection.send(self.welcome(position, reason))
        return position

    def welcome(self, offset: int, reason: protocol.Reason | None = None) -> str:
        return protocol.encode_welcome(
            connection="c",
            service="orders",
            user="ann",
            device="default",
            epoch=self.epoch,
            offset=offset,
            recovered=reason is None,
            reason=reason,
            ping=self.ping,
            window=self.window,
            max_message_size=self.max_message_size,
            expires_in=self.expires_in,
        )

    async def _write(self, connection: ServerConnection, position: int, state: Any) -> None:
        unacked: list[int] = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                async with self._news:
                    unacked = [offset for offset in unacked if offset > state["acked"]]
                    ready = [item for item in self.inbox if item[0] > position]
                    if not ready or len(unacked) >= self.window:
                        await self._news.wait()
                        continue
                offset, time, frame = ready[0]
                await connection.send(
                    protocol.encode_message(
                        offset,
                        time,
                        frame.payload,
                        frame.text,
                        *self.replies.get(offset, (None, None)),
                    )
                )
                position = offset
                unacked.append(offset)
                self.most_unacked = max(self.most_unacked, len(unacked))

    async def _read(self, connection: ServerConnection, frame: object, state: Any) -> None:
        if (topic := self._topic_of(frame)) is not None:
            await topic.take(connection, frame)
        elif isinstance(frame, Ack):
            self.acks.append(frame.offset)
            self.ack_epochs.append(frame.epoch)
            async with self._news:
                state["acked"] = max(state["acked"], frame.offset)
                self._news.notify_all()
        elif isinstance(frame, Ping) and not self.mute:
            self.pings += 1
            await connection.send(protocol.encode_pong())
        elif isinstance(frame, ClientMessage):
            self.arrivals.append(frame.id)
            if frame.request:
                self.requests.append(frame.id)
            if frame.id in self.refusals:
                code = self.refusals[frame.id]
                await connection.send(protocol.encode_error(frame.id, code, "refused"))
                return
            self.stored.setdefault(frame.id, frame.frame)
            self.stored_in[frame.id] = None if frame.topic is None else str(frame.topic)
            if self.confirm:
                await connection.send(protocol.encode_ack(frame.id))
        elif isinstance(frame, protocol.Refresh):
            self.refreshes.append(frame.token)
            if self.unauthorized:
                self.unauthorized -= 1
                text = protocol.encode_error(None, ErrorCode.UNAUTHORIZED, "no")
            else:
                text = protocol.encode_refreshed(self.expires_in)
            await connection.send(text)
        elif isinstance(frame, protocol.Pong):
            self.pongs += 1

    def _topic_of(self, frame: object) -> FakeTopic | None:
        """Return the topic that a frame is about; None for a message, which is stored here."""
        name = getattr(frame, "topic", None)
        if name is None or isinstance(frame, ClientMessage):
            return None
        return self.topics.get(str(name)) or FakeTopic(str(name), access=None)

    async def cut_at_random(self, numbers: random.Random, every: float) -> None:
        """Cut connections until cancelled, at random moments *every* seconds on average."""
        while True:
            await asyncio.sleep(numbers.expovariate(1 / every))
            self.cut()
