"""Everything that leans on a private detail of nats-py. ``tests/integration/test_handshake.py``
is the canary: it fails, and says what to do, when a new version changes one of them.

nats-py connects: servers, TLS, credentials, the first exchange. Then `DirectClient` takes over
the socket, because some of nats-py 2.16 is slow or unsafe for a gateway:

* It reads through a stream, a task and regular expressions (see `reader`), with a queue and a
  task per subscription, which reorders across subscriptions and drops silently at a limit.
* It writes through a queue, a future and a task, and swallows cancellation while it waits.
* Its read loop dies of a PONG that nobody waits for.
* It sends everything in clear text, even to a ``tls://`` URL, if the server does not ask for TLS.
* It keeps every address that the cluster ever announced, and the first INFO's max_payload.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client

from wsgateway.broker.bus import Handler
from wsgateway.broker.nats.reader import Reader

__all__ = ["DirectClient"]

logger = logging.getLogger("wsgateway.broker")

OUTBOUND_HIGH = 1024 * 1024
"""Bytes waiting for the server above which `DirectClient.writable` waits."""
REFUSALS = ("permissions violation", "maximum subscriptions exceeded", "invalid ")
"""How those errors begin after which the server keeps the connection open."""


class DirectClient(Client):
    """A nats-py client whose socket is read and written by plain functions.

    Args:
        handlers: Subscription id to its handler; shared with the owner, read per message.
        on_refusal: Takes an error of the server after which the connection stays open.
        insists_on_tls: Whether nothing may be sent in clear.
    """

    def __init__(
        self,
        handlers: dict[int, Handler],
        on_refusal: Callable[[DirectClient, str], None] = lambda client, text: None,
        *,
        insists_on_tls: bool = False,
    ) -> None:
        super().__init__()
        self._handlers = handlers
        self._on_refusal = on_refusal
        self._insists_on_tls = insists_on_tls
        self.on_info: Callable[[], None] = lambda: None
        """Called after the server has sent a new INFO."""
        self.end_reason = "the server closed the connection"
        """Why the connection ended, as far as the server said."""
        self.given_up = False
        """Whether the connection is about to end, though answers may still come."""
        self.subscribed: set[int] = set()
        """Ids that were sent to the server while the connection was restored."""
        self._socket: asyncio.WriteTransport | None = None
        self._reader: Reader | None = None
        self._commands: list[bytes] = []  # what `send_now` will send
        self._commands_size = 0
        self._pings: deque[_Ping] = deque()  # sent, not answered
        self._pinged = False  # in this turn of the loop
        self._next_ping: _Ping | None = None  # for those who came after that one
        self._ended: asyncio.Future[None] | None = None

    async def connect(self, *args: Any, **options: Any) -> None:
        """Connect as nats-py does, then take over the socket."""
        await super().connect(*args, **options)
        stream: asyncio.StreamReader | None = getattr(self._transport, "_io_reader", None)
        writer = self._writer()
        if writer is None or stream is None:
            raise ValueError("NATS over websockets is not supported")
        transport = writer.transport
        self._ended = asyncio.get_running_loop().create_future()
        reader = Reader(self._handlers, self._on_control, self._on_end, transport.get_protocol())
        transport.set_protocol(reader)
        transport.set_write_buffer_limits(OUTBOUND_HIGH)
        tasks = self._own_tasks()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        stream.feed_eof()  # so that reading ends with what is there
        self._socket, self._reader = transport, reader
        reader.start(transport, bytes(self._ps.buf) + await stream.read())

    def last_words(self) -> str:
        """Return the error that the server sent before it closed a connection that was begun.

        Reading would raise what ended the connection, so this looks into the stream's buffer.
        """
        stream = getattr(self._transport, "_io_reader", None)
        _, error, text = bytes(getattr(stream, "_buffer", b"")).partition(b"-ERR")
        return text.partition(b"\r\n")[0].decode("utf-8", "replace").strip(" '") if error else ""

    @property
    def was_ignored(self) -> bool:
        """Whether the other side accepted the connection, but did not greet as NATS does."""
        return self._writer() is not None and not self._server_info

    def _writer(self) -> asyncio.StreamWriter | None:
        return getattr(self._transport, "_io_writer", None)

    def _own_tasks(self) -> set[asyncio.Task[None]]:
        tasks = (self._reading_task, self._ping_interval_task, self._flusher_task)
        return {task for task in tasks if task is not None}

    # -- reading -------------------------------------------------------------------------

    def _on_control(self, line: bytes) -> None:
        if line == b"PING":
            self.write(b"PONG\r\n")
        elif line == b"PONG":
            if self._pings:
                self._pings.popleft().end(True)
        elif line.startswith(b"INFO "):
            try:
                self._take_info(json.loads(line[5:]))
            except RecursionError as exc:
                raise ValueError("INFO is nested too deeply") from exc
            self.on_info()
        elif line.startswith(b"-ERR"):
            self._on_error(line[4:].decode("utf-8", "replace").strip().strip("'"))
        elif line != b"+OK":
            raise ValueError(line)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Take the first INFO; nats-py calls this before it sends anything."""
        self._take_info(info)
        if self._insists_on_tls:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise ValueError("the server offers no TLS, but the settings or its URL demand it")
            info["tls_required"] = True  # nats-py encrypts only if the server demands it

    def _take_info(self, info: Any) -> None:
        if not isinstance(info, dict):
            raise ValueError(f"INFO holds a {type(info).__name__}")
        self._server_info = info

    def _on_error(self, text: str) -> None:
        if text.lower().startswith(REFUSALS):
            self._on_refusal(self, text)
        else:
            self.give_up(f"the server ended the connection: {text}")

    def give_up(self, reason: str) -> None:
        """End the connection from a callback."""
        self.end_reason = reason
        self.given_up = True
        if self._socket is not None:
            self._socket.abort()

    def _on_end(self, exc: Exception | None) -> None:
        if exc is not None:
            self.end_reason = getattr(exc, "strerror", None) or repr(exc)
        for ping in (*self._pings, self._next_ping):
            if ping is not None:
                ping.end(False)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* once the connection has ended, whatever the reason."""
        assert self._ended is not None, "not connected"
        self._ended.add_done_callback(lambda _: callback())

    def has_ended(self) -> bool:
        """Say whether the connection, once made, has ended."""
        return self._ended is not None and self._ended.done()

    # -- writing -------------------------------------------------------------------------

    def write(self, command: bytes) -> None:
        """Send *command* at the end of this turn of the loop, with what else was written in it."""
        if not self._commands:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._commands.append(command)
        self._commands_size += len(command)

    def send_now(self) -> None:
        """Send what was written, now."""
        commands, self._commands = self._commands, []
        self._commands_size = 0
        if self._next_ping is not None:
            commands.append(b"PING\r\n")
            self._pings.append(self._next_ping)
            self._next_ping = None
        if commands and self._socket is not None and not self._socket.is_closing():
            self._socket.write(b"".join(commands))

    def _end_turn(self) -> None:
        self._pinged = False
        self.send_now()

    @property
    def buffered(self) -> int:
        """Bytes that wait for the socket."""
        size = self._commands_size
        return size if self._socket is None else size + self._socket.get_write_buffer_size()

    @property
    def is_crowded(self) -> bool:
        """Whether `writable` would wait."""
        return self.buffered > OUTBOUND_HIGH

    async def writable(self) -> None:
        """Wait while the transport takes nothing more; a turn of the loop at least.

        Returns when the connection ends.
        """
        await asyncio.sleep(0)  # what this turn wrote goes to the transport, which then knows
        if self._reader is not None:
            await self._reader.writable.wait()

    @property
    def server_info(self) -> dict[str, object]:
        """What the server said in its latest INFO."""
        return dict(self._server_info)

    @property
    def announced_servers(self) -> list[object]:
        """Host and port of each server of the cluster, as the server said them last."""
        urls = self._server_info.get("connect_urls")
        return urls if isinstance(urls, list) else []

    async def ping(self, timeout: float) -> bool:
        """Return whether the server answered a PING within *timeout* seconds.

        The answer also proves that everything written before has been processed. The first who
        asks in a turn of the loop has a PING sent at once, all others of this turn share one.
        """
        if self.has_ended():
            return False
        ping = self._next_ping
        if ping is None:
            ping = _Ping(timeout)
            if self._pinged:
                self._next_ping = ping
                self.write(b"")
            else:
                self._pinged = True
                self._pings.append(ping)
                self.write(b"PING\r\n")
                self.send_now()
        return await ping.wait()

    # -- the end -------------------------------------------------------------------------

    def close_inherited(self) -> None:
        """Close the socket only: server, transport and loop belong to the parent process."""
        if self._socket is not None:
            shared = self._socket.get_extra_info("socket")
            sock = getattr(shared, "_sock", shared)  # asyncio hides the real one
            if sock is not None:
                sock.close()

    def abandon(self) -> None:
        """Drop the connection at once, without waiting for anything.

        ``Client.close`` waits for the socket to drain, for ever if the server is stopped.
        """
        self._status = Client.CLOSED
        for task in self._own_tasks():
            task.cancel()
        writer = self._writer()
        if writer is not None:
            writer.transport.abort()


class _Ping:
    """A PING and the waiters for its PONG.

    Args:
        timeout: Seconds that they wait.
    """

    __slots__ = ("_loop", "_timer", "_waiters")

    def __init__(self, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout, self.end, False)
        self._waiters: list[asyncio.Future[bool]] = []

    def end(self, answered: bool) -> None:
        self._timer.cancel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(answered)

    async def wait(self) -> bool:
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiters.append(waiter)
        return await waiter
