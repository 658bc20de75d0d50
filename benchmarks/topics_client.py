"""Many clients in one process that read topics: they subscribe, resume, acknowledge and count."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable

from benchmarks.load import LoadSocket, handshake, stamp

__all__ = ["Audience", "Reader"]

ACK_EVERY = 16
ACK_INTERVAL = 0.2
PATIENCE = 60.0
"""Seconds that an attempt to connect, or to subscribe, may take."""
TOPIC = b'{"type":"message","topic":"'
OFFSET = b'"offset":'
DATA = b'"data":"'
SAMPLE = 16
"""Of so many messages, one counts for the latency: the clock costs more than the rest."""


class _Place:
    """Where a reader is in a topic."""

    __slots__ = ("epoch", "expected", "name", "offset", "unacked")

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch: str | None = None
        self.offset = 0
        self.expected = 0
        self.unacked = 0


class Reader:
    """One client, over any number of connections.

    Args:
        audience: Whom it counts for.
        user: Its name.
        topics: What it reads.
    """

    def __init__(self, audience: Audience, user: str, topics: Iterable[str]) -> None:
        self.audience = audience
        self.user = user
        self.places = {name.encode(): _Place(name) for name in topics}
        self.socket: LoadSocket | None = None
        self.welcomed: asyncio.Future[None] | None = None
        self.subscribed: asyncio.Future[None] | None = None
        self.recovered = 0
        self._open = 0  # topics that are not subscribed yet
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self, port: int, headers: dict[str, str], path: str) -> None:
        """Open a socket, and wait until the gateway has welcomed it."""
        loop = asyncio.get_running_loop()
        request = handshake(path.format(user=self.user), port, headers)
        self.welcomed = loop.create_future()
        async with asyncio.timeout(PATIENCE):
            _, self.socket = await loop.create_connection(
                lambda: LoadSocket(self.user, request, self._on_message), "127.0.0.1", port
            )
            await self.socket.accepted
            if self.audience.v1:
                await self.welcomed

    async def subscribe(self) -> None:
        """Subscribe to all topics at once, from where it is."""
        assert self.socket is not None
        self._open, self.recovered = len(self.places), 0
        self.subscribed = asyncio.get_running_loop().create_future()
        for place in self.places.values():
            frame: dict[str, object] = {"type": "subscribe", "id": "s", "topic": place.name}
            if place.epoch is not None:
                frame |= {"epoch": place.epoch, "offset": place.offset}
            self.socket.send(json.dumps(frame))
        async with asyncio.timeout(PATIENCE):
            await self.subscribed

    def acknowledge(self) -> None:
        """Confirm what came."""
        self._timer = None
        assert self.socket is not None
        for place in self.places.values():
            if place.unacked:
                place.unacked = 0
                fields = {"topic": place.name, "offset": place.offset, "epoch": place.epoch}
                self.socket.send(json.dumps({"type": "ack", **fields}))

    def close(self) -> None:
        """Cut the connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.socket is not None:
            self.socket.close()

    def _on_message(self, socket: LoadSocket, data: bytes) -> None:
        audience = self.audience
        if not audience.v1:
            audience.take(self.places[b""], data)
            return
        if not data.startswith(TOPIC):
            self._on_control(json.loads(data))
            return
        end = data.index(b'"', len(TOPIC))
        place = self.places[data[len(TOPIC) : end]]
        audience.take(place, data[data.index(DATA, end) + len(DATA) :])
        if not audience.acknowledges:
            return
        start = data.index(OFFSET, end) + len(OFFSET)
        place.offset = int(data[start : data.index(b",", start)])
        place.unacked += 1
        if place.unacked >= ACK_EVERY:
            self.acknowledge()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ACK_INTERVAL, self.acknowledge)

    def _on_control(self, frame: dict[str, object]) -> None:
        if frame["type"] == "welcome" and self.welcomed is not None and not self.welcomed.done():
            self.welcomed.set_result(None)
        elif frame["type"] == "subscribed":
            place = self.places[str(frame["topic"]).encode()]
            if "epoch" in frame:
                place.epoch, place.offset = str(frame["epoch"]), int(str(frame["offset"]))
            self.recovered += bool(frame.get("recovered"))
            self._open -= 1
            if not self._open and self.subscribed is not None:
                self.subscribed.set_result(None)
        elif frame["type"] == "unsubscribed" and self.subscribed is not None:
            self.subscribed.set_exception(ConnectionError(str(frame)))
        elif frame["type"] == "ping" and self.socket is not None:
            self.socket.send('{"type":"pong"}')


class Audience:
    """Readers, and what they got together.

    Args:
        topics: What each of them reads; one empty name without `v1`.
        v1: Whether they speak ``wsgateway.v1``; else every frame is a message.
        acknowledges: Whether they acknowledge.
        path: Of the socket; may hold ``{user}``.
    """

    def __init__(
        self,
        topics: Iterable[list[str]],
        *,
        v1: bool = True,
        acknowledges: bool = True,
        path: str = "/ws/bench/{user}/",
    ) -> None:
        self.v1 = v1
        self.acknowledges = acknowledges
        self.path = path
        self.count = 0
        self.wrong = 0
        """Messages that were not the next one of their topic."""
        self.first = self.last = 0.0
        self.delays: list[float] = []
        """Milliseconds from publishing to arrival."""
        self.readers = [Reader(self, f"u{n}", names) for n, names in enumerate(topics)]

    async def connect(self, port: int, at_once: int = 64) -> float:
        """Open all sockets; return the seconds until the last was welcomed."""
        gate = asyncio.Semaphore(at_once)

        async def one(reader: Reader) -> None:
            async with gate:
                headers = {"Cookie": f"service=bench; user={reader.user}"}
                if self.v1:
                    headers["Sec-WebSocket-Protocol"] = "wsgateway.v1"
                await reader.connect(port, headers, self.path)

        begin = time.perf_counter()
        await asyncio.gather(*map(one, self.readers))
        return time.perf_counter() - begin

    async def subscribe(self) -> float:
        """Subscribe on all sockets; return the seconds until the last subscription began."""
        begin = time.perf_counter()
        await asyncio.gather(*(reader.subscribe() for reader in self.readers))
        return time.perf_counter() - begin

    def begin(self, number: int = 0) -> None:
        """Count again; the next message of each topic has this number."""
        self.count = 0
        self.first = self.last = 0.0
        self.delays.clear()
        for reader in self.readers:
            for place in reader.places.values():
                place.expected = number

    async def reach(self, count: int, patience: float) -> bool:
        """Wait until *count* messages have come; give up once none came for *patience* s."""
        before, quiet = -1, time.monotonic()
        while self.count < count:
            if self.count != before:
                before, quiet = self.count, time.monotonic()
            elif time.monotonic() - quiet > patience:
                return False
            await asyncio.sleep(0.02)
        return True

    @property
    def rate(self) -> float:
        """Messages per second, from when the first was published until the last arrived."""
        return self.count / max(self.last - self.first, 1e-9)

    def close(self) -> None:
        """Cut all connections."""
        for reader in self.readers:
            reader.close()

    def take(self, place: _Place, data: bytes) -> None:
        """Count a message."""
        number, sent = stamp(data)
        if number != place.expected:
            self.wrong += 1
        place.expected = number + 1
        self.count += 1
        if not self.first or not self.count % SAMPLE:
            now = time.time_ns()
            self.last = now / 1e9
            self.first = self.first or sent / 1e9
            self.delays.append((now - sent) / 1e6)
