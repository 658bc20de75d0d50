"""Many readers in one process: of server-sent events or websockets, of wsgateway or of Pushpin."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from benchmarks.http_app import TOPIC
from benchmarks.http_publisher import USERS_FROM
from benchmarks.load import LoadSocket, handshake, stamp

__all__ = ["Crowd", "EventReader", "Reader", "SocketReader"]

ACK_EVERY = 16
ACK_INTERVAL = 0.2
PATIENCE = 60.0
"""Seconds that the first attempt to connect may take."""
RETRY_PATIENCE = 10.0
"""The same of each attempt to come back: a request that meets a start may never be answered."""
COMES_BACK = (0.5, 1.5)
"""Seconds after which a reader that was cut tries again, and again."""
SAMPLE = 16
"""Of so many messages, one counts for the latency: the clock costs more than the rest."""


class Reader:
    """One reader, over any number of connections.

    Args:
        crowd: Whom it counts for.
        user: Its name.

    Attributes:
        on_back: Called when it has come back.
    """

    on_back: Callable[[], None] | None = None

    def __init__(self, crowd: Crowd, user: str) -> None:
        self.crowd = crowd
        self.user = user
        self.seen: set[int] = set()
        self.last = [-1, -1]
        """The newest number of the topic, and of the user."""
        self.ready: asyncio.Future[None] | None = None
        self.is_away = False
        """Whether it was cut, and has not come back."""
        self._transport: asyncio.Transport | None = None

    async def connect(self, patience: float = PATIENCE) -> None:
        """Open a connection, and wait until it gets what is published."""
        loop = asyncio.get_running_loop()
        self.ready = loop.create_future()
        async with asyncio.timeout(patience):
            made = await loop.create_connection(self._protocol, "127.0.0.1", self.crowd.port)
            self._transport = made[0]
            await self.ready

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def welcome(self) -> None:
        """Note that it gets what is published."""
        if self.ready is not None and not self.ready.done():
            self.ready.set_result(None)

    def cut(self) -> None:
        """Note that the connection has ended."""
        if self.ready is not None and not self.ready.done():
            self.ready.set_exception(ConnectionError(f"{self.user} was cut"))
        else:
            self.crowd.come_back(self)

    def back(self) -> None:
        """Note that it reads again."""
        self.is_away = False
        if self.on_back is not None:
            self.on_back()

    def _protocol(self) -> asyncio.Protocol:
        raise NotImplementedError


class Crowd:
    """Readers, and what they got together.

    Args:
        kind: What they are.
        count: How many.
        ours: Whether they read from wsgateway.
    """

    def __init__(self, kind: Callable[[Crowd, str], Reader], count: int, *, ours: bool) -> None:
        self.ours = ours
        self.port = 0
        self.returns = False
        """Whether readers that are cut come back."""
        self.count = 0
        self.twice = 0
        self.disorder = 0
        """Messages that came after a later one of the same user or topic."""
        self.first = self.last = 0.0
        self.delays: list[float] = []
        """Milliseconds from publishing to arrival."""
        self.readers = [kind(self, f"u{number}") for number in range(count)]
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, port: int, at_once: int = 64) -> float:
        """Connect all readers; return the seconds until the last one reads."""
        self.port = port
        gate = asyncio.Semaphore(at_once)

        async def one(reader: Reader) -> None:
            async with gate:
                await reader.connect()

        begin = time.perf_counter()
        await asyncio.gather(*map(one, self.readers))
        return time.perf_counter() - begin

    def come_back(self, reader: Reader) -> None:
        """Connect a reader that was cut again, if readers come back and this one is not at it."""
        if self.returns and not reader.is_away:
            reader.is_away = True
            task = asyncio.create_task(self._come_back(reader))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _come_back(self, reader: Reader) -> None:
        while True:
            await asyncio.sleep(random.uniform(*COMES_BACK))
            try:
                await reader.connect(RETRY_PATIENCE)
            except (OSError, TimeoutError):
                reader.close()
            else:
                reader.back()
                return

    @property
    def away(self) -> int:
        """How many readers are not back."""
        return len(self._tasks)

    def begin(self) -> None:
        """Count again."""
        self.count = self.twice = self.disorder = 0
        self.first = self.last = 0.0
        self.delays.clear()
        for reader in self.readers:
            reader.seen.clear()
            reader.last = [-1, -1]

    async def reach(self, count: int, patience: float) -> None:
        """Wait until *count* messages have come; give up once none came for *patience* s."""
        before, quiet = -1, time.monotonic()
        while self.count < count and time.monotonic() - quiet < patience:
            if self.count != before:
                before, quiet = self.count, time.monotonic()
            await asyncio.sleep(0.02)

    @property
    def rate(self) -> float:
        """Messages a second, from when the first was published until the last arrived."""
        return self.count / max(self.last - self.first, 1e-9)

    def take(self, reader: Reader, data: bytes) -> None:
        """Count a message."""
        number, sent = stamp(data)
        if number in reader.seen:
            self.twice += 1
            return
        reader.seen.add(number)
        stream = number >= USERS_FROM
        if number < reader.last[stream]:
            self.disorder += 1
        else:
            reader.last[stream] = number
        self.count += 1
        if not self.first or not self.count % SAMPLE:
            now = time.time_ns()
            self.last = now / 1e9
            self.first = self.first or sent / 1e9
            self.delays.append((now - sent) / 1e6)

    def close(self) -> None:
        """Cut all connections."""
        self.returns = False
        for task in list(self._tasks):
            task.cancel()
        for reader in self.readers:
            reader.close()


# -- server-sent events ----------------------------------------------------------------------


class EventReader(Reader):
    """Reads server-sent events, as a browser's `EventSource` does."""

    last_id = b""

    def _protocol(self) -> asyncio.Protocol:
        path = f"/sse/bench/{self.user}/?topic={TOPIC}" if self.crowd.ours else f"/sse/{self.user}/"
        lines = {
            "Host": f"127.0.0.1:{self.crowd.port}",
            "Accept": "text/event-stream",
            "Cookie": f"service=bench; user={self.user}",
        }
        if self.last_id:
            lines["Last-Event-ID"] = self.last_id.decode()
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return _Response(self, f"GET {path} HTTP/1.1\r\n{text}\r\n".encode())


class _Response(asyncio.Protocol):
    """One response: its chunks, and the events in them."""

    def __init__(self, reader: EventReader, request: bytes) -> None:
        self._reader = reader
        self._request = request
        self._raw = b""
        self._text = b""
        self._answered = False
        self._begun = 0
        self._wanted = 2 if reader.crowd.ours else 1  # what says where inbox and topic begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take the head, and then chunks."""
        raw = self._raw + data if self._raw else data
        if not self._answered:
            end = raw.find(b"\r\n\r\n")
            if end < 0:
                self._raw = raw
                return
            if b" 200 " not in raw[:16]:
                self._reader.cut()
                self._reader.close()
                return
            self._answered, raw = True, raw[end + 4 :]
        start, text = 0, [self._text]
        while (end := raw.find(b"\r\n", start)) >= 0:
            size = int(raw[start:end], 16)
            stop = end + 2 + size
            if len(raw) < stop + 2:
                break
            text.append(raw[end + 2 : stop])
            start = stop + 2
        self._raw = raw[start:]
        *events, self._text = b"".join(text).split(b"\n\n")
        for event in events:
            self._take(event)

    def _take(self, event: bytes) -> None:
        start = event.rfind(b"data: ") + 6
        if start > 5 and event[start : start + 1].isdigit():
            if event.startswith(b"id: "):
                self._reader.last_id = event[4 : event.index(b"\n")]
            self._reader.crowd.take(self._reader, event[start:])
        elif not event.startswith(b"retry:"):
            self._begun += 1
            if self._begun == self._wanted:
                self._reader.welcome()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._reader.cut()


# -- websockets ------------------------------------------------------------------------------


class _Socket(LoadSocket):
    """Tells its reader about its end, and about the handshake's."""

    reader: SocketReader

    def data_received(self, data: bytes) -> None:
        """Parse frames; one that is told to leave, leaves."""
        super().data_received(data)
        if self.accepted.done() and not self.reader.crowd.ours:
            self.reader.welcome()
        if self.closed is not None:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        super().connection_lost(exc)
        self.accepted.exception()
        self.reader.cut()


class SocketReader(Reader):
    """Reads a websocket: `wsgateway.v1`, or Pushpin's plain frames.

    Attributes:
        on_frame: Called with the data of each message that is not one of the benchmark's feeds.
    """

    _MESSAGE = b'{"type":"message"'
    _OFFSET = re.compile(rb'"offset":(\d+)')
    _TOPIC = b'"topic":'
    _DATA = b'"data":"'
    on_frame: Callable[[bytes], None] | None = None

    def __init__(self, crowd: Crowd, user: str) -> None:
        super().__init__(crowd, user)
        self.socket: _Socket | None = None
        self._epochs: dict[str, str] = {}
        self._offsets: dict[str, int] = {}
        """By topic; the inbox is ``""``."""
        self._inbox = ""
        self._unacked: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def _protocol(self) -> asyncio.Protocol:
        headers, path = {}, f"/ws/{self.user}/"
        if self.crowd.ours:
            headers["Cookie"] = f"service=bench; user={self.user}"
            headers["Sec-WebSocket-Protocol"] = "wsgateway.v1"
            path = f"/ws/bench/{self.user}/"
            if self._inbox:
                at = {"epoch": self._epochs[""], "offset": self._offsets[""], "inbox": self._inbox}
                path += f"?{urlencode(at)}"
        request = handshake(path, self.crowd.port, headers)
        take = self._on_v1 if self.crowd.ours else self._on_plain
        self.socket = socket = _Socket(self.user, request, take)
        socket.reader = self
        self._unacked.clear()
        return socket

    def _on_plain(self, socket: LoadSocket, data: bytes) -> None:
        if self.on_frame is not None:
            self.on_frame(data)
        else:
            self.crowd.take(self, data)

    def _on_v1(self, socket: LoadSocket, data: bytes) -> None:
        if not data.startswith(self._MESSAGE):
            self._on_control(json.loads(data))
            return
        begin = data.index(self._DATA) + len(self._DATA)
        if self.on_frame is not None:
            self.on_frame(data[begin:])
        else:
            self.crowd.take(self, data[begin:])
        name = TOPIC if data.find(self._TOPIC, 0, begin) >= 0 else ""
        found = self._OFFSET.search(data, 0, begin)
        assert found is not None
        self._offsets[name] = int(found[1])
        self._unacked[name] = self._unacked.get(name, 0) + 1
        if self._unacked[name] >= ACK_EVERY:
            self._acknowledge()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACK_INTERVAL, self._acknowledge)

    def _acknowledge(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for name in self._unacked:
            frame = {"type": "ack", "offset": self._offsets[name], "epoch": self._epochs[name]}
            self._send(frame | ({"topic": name} if name else {}))
        self._unacked.clear()

    def _on_control(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "welcome":
                self._epochs[""], self._inbox = frame["epoch"], frame["inbox"]
                self._offsets[""] = frame["offset"]
                subscribe: dict[str, Any] = {"type": "subscribe", "id": "s", "topic": TOPIC}
                if TOPIC in self._epochs:
                    at = {"epoch": self._epochs[TOPIC], "offset": self._offsets[TOPIC]}
                    subscribe |= at
                self._send(subscribe)
            case "subscribed":
                self._epochs[TOPIC], self._offsets[TOPIC] = frame["epoch"], frame["offset"]
                self.welcome()
            case "unsubscribed" | "error":
                raise ConnectionError(str(frame))
            case "ping":
                self._send({"type": "pong"})

    def _send(self, frame: dict[str, Any]) -> None:
        assert self.socket is not None
        self.socket.send(json.dumps(frame))

    def ask(self, data: bytes) -> None:
        """Send a frame that the backend answers."""
        assert self.socket is not None
        if self.crowd.ours:
            frame = {"type": "message", "id": data[:31].decode().replace(" ", "-"), "request": True}
            self._send(frame | {"data": data.decode()})
        else:
            self.socket.send(data.decode())
