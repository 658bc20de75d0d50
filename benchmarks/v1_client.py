"""Many `wsgateway.v1` clients in one process: they resume, acknowledge, and count."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterable
from urllib.parse import quote

from benchmarks.load import LoadSocket, handshake, stamp

__all__ = ["Client", "Crowd"]

ACK_EVERY = 16
ACK_INTERVAL = 0.2
PATIENCE = 30.0
"""Seconds that an attempt to connect may take."""
MESSAGE = b'{"type":"message","offset":'
DATA = b'"data":"'


class _Socket(LoadSocket):
    """Fails its client's welcome when it is closed."""

    client: Client

    def data_received(self, data: bytes) -> None:
        """Parse frames; a client that is told to leave, leaves."""
        super().data_received(data)
        if self.closed is not None:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        super().connection_lost(exc)
        welcomed = self.client.welcomed
        if self.client.socket is self and welcomed is not None and not welcomed.done():
            welcomed.set_exception(ConnectionError(f"closed: {self.closed}"))


class Client:
    """One user, over any number of connections.

    Args:
        name: The user.
    """

    __slots__ = (
        "acked",
        "awake",
        "epoch",
        "expected",
        "name",
        "offset",
        "recovered",
        "socket",
        "timer",
        "welcomed",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.socket: LoadSocket | None = None
        self.epoch: str | None = None
        self.offset = 0
        self.acked = 0
        """Messages that came since the last acknowledgement."""
        self.expected = 0
        """Number of the next message."""
        self.awake = True
        """Whether it acknowledges."""
        self.timer: asyncio.TimerHandle | None = None
        """Of the next acknowledgement: each client has its own rhythm, as real ones do."""
        self.recovered: bool | None = None
        self.welcomed: asyncio.Future[None] | None = None

    @property
    def query(self) -> str:
        """Where it goes on."""
        if self.epoch is None:
            return ""
        return f"?epoch={quote(self.epoch)}&offset={self.offset}"

    def acknowledge(self) -> None:
        """Confirm what came."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.acked and self.awake and self.socket is not None:
            self.acked = 0
            self.socket.send(f'{{"type":"ack","offset":{self.offset},"epoch":"{self.epoch}"}}')


class Crowd:
    """Clients, and what they got together.

    Args:
        names: The users.
        v1: Whether they speak the subprotocol; raw sockets otherwise.
        service: The service.
    """

    def __init__(self, names: Iterable[str], *, v1: bool = True, service: str = "bench") -> None:
        self.clients = {name: Client(name) for name in names}
        self.v1 = v1
        self.service = service
        self.count = 0
        self.failed = 0
        """Attempts to connect that came to nothing."""
        self.wrong = 0
        """Messages that were not the next one of their inbox: lost, twice, or out of order."""
        self.first = self.last = 0.0
        self.delays: list[float] = []
        """Milliseconds from publishing to arrival."""

    async def connect(self, port: int, at_once: int = 64) -> float:
        """Open a socket for each; return the seconds until the last was welcomed."""
        gate = asyncio.Semaphore(at_once)

        async def one(client: Client) -> None:
            async with gate:
                await self._attempt(client, port)

        begin = time.perf_counter()
        await asyncio.gather(*map(one, self.clients.values()))
        return time.perf_counter() - begin

    async def come_back(self, port: int) -> float:
        """As `connect`, but all at once, as after the end of a gateway: with backoff and jitter.

        What fails is tried again, and counted in `failed`.
        """

        async def one(client: Client) -> None:
            delay = 0.5
            while True:
                await asyncio.sleep(delay * random.random())
                delay = min(delay * 2, 30.0)
                try:
                    return await self._attempt(client, port)
                except OSError:
                    self.failed += 1
                    if client.socket is not None:
                        client.socket.close()

        begin = time.perf_counter()
        await asyncio.gather(*map(one, self.clients.values()))
        return time.perf_counter() - begin

    async def _attempt(self, client: Client, port: int) -> None:
        """Connect once.

        Raises:
            OSError: It failed, or took too long.
        """
        loop = asyncio.get_running_loop()
        headers = {"Cookie": f"service={self.service}; user={client.name}"}
        if self.v1:
            headers["Sec-WebSocket-Protocol"] = "wsgateway.v1"
        request = handshake(f"/ws/{self.service}/{client.name}/{client.query}", port, headers)
        client.welcomed = loop.create_future()
        client.welcomed.add_done_callback(lambda done: done.cancelled() or done.exception())
        async with asyncio.timeout(PATIENCE):  # its TimeoutError is an OSError
            _, socket = await loop.create_connection(
                lambda: _Socket(client.name, request, self._on_message), "127.0.0.1", port
            )
            socket.client, client.socket = client, socket
            await socket.accepted
            if self.v1:
                await client.welcomed

    def close(self) -> None:
        """Cut all connections."""
        for client in self.clients.values():
            client.awake = False
            if client.timer is not None:
                client.timer.cancel()
            if client.socket is not None:
                client.socket.close()

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

    def reset(self) -> None:
        """Count again."""
        self.count = 0
        self.first = self.last = 0.0
        self.delays.clear()

    def expect(self, number: int) -> None:
        """Note that the next message of each has this number."""
        for client in self.clients.values():
            client.expected = number

    @property
    def rate(self) -> float:
        """Messages per second between the first and the last."""
        return self.count / max(self.last - self.first, 1e-9)

    def _on_message(self, socket: LoadSocket, data: bytes) -> None:
        client = self.clients[socket.name]
        if not self.v1:
            self._take(client, data)
        elif data.startswith(MESSAGE):
            start = len(MESSAGE)
            client.offset = int(data[start : data.index(b",", start)])
            client.acked += 1
            self._take(client, data[data.index(DATA) + len(DATA) :])
            if client.acked >= ACK_EVERY:
                client.acknowledge()
            elif client.timer is None:
                loop = asyncio.get_running_loop()
                client.timer = loop.call_later(ACK_INTERVAL, client.acknowledge)
        else:
            self._on_control(client, json.loads(data))

    def _on_control(self, client: Client, frame: dict[str, object]) -> None:
        if frame["type"] == "welcome":
            client.epoch, client.offset = str(frame["epoch"]), int(str(frame["offset"]))
            client.recovered = bool(frame["recovered"])
            if client.welcomed is not None and not client.welcomed.done():
                client.welcomed.set_result(None)
        elif frame["type"] == "ping" and client.socket is not None:
            client.socket.send('{"type":"pong"}')

    def _take(self, client: Client, data: bytes) -> None:
        number, sent = stamp(data)
        now = time.time_ns()
        if number != client.expected:
            self.wrong += 1
        client.expected = number + 1
        self.count += 1
        self.last = now / 1e9
        self.first = self.first or self.last
        self.delays.append((now - sent) / 1e6)
