"""A process that publishes by HTTP, to wsgateway's server API or to Pushpin; see `http`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.http_app import TOPIC
from benchmarks.load import payload

__all__ = ["USERS_FROM", "command"]

USERS_FROM = 1_000_000_000
"""Number of the first message to a user; a topic's begin at 0."""
API = "/api/v1/publish"
PAUSE = 0.05
"""Seconds between two tries of a request that failed."""


def command(**options: Any) -> list[str]:
    """Return the command line of a publisher process; see `_parse`."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "benchmarks.http_publisher", *words]


class _Lane:
    """One connection: a request at a time, each repeated until it is answered with 200.

    Args:
        port: Of the server.
        head: What begins every request, up to its length.
    """

    def __init__(self, port: int, head: bytes) -> None:
        self.failed = 0
        self._port = port
        self._head = head
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> None:
        """Send a request until it succeeds."""
        request = b"%bContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body)
        while True:
            try:
                async with asyncio.timeout(30):
                    await self._try(request)
            except (OSError, EOFError, TimeoutError):
                self._close()
                self.failed += 1
                await asyncio.sleep(PAUSE)
            else:
                return

    async def _try(self, request: bytes) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(size)
        if b" 200 " not in head[:16] or b'"problem"' in body:
            raise OSError(f"{head!r} {body!r}")
        if b"connection: close" in head:  # as Pushpin does each time
            self._close()

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Publisher:
    """Publishes what its options say.

    Args:
        options: See `_parse`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.failed = 0

    async def run(self) -> dict[str, float]:
        """Publish everything; return how long that took."""
        begin, busy = time.time(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for number in range(self.options.lanes):
                group.create_task(self._lane(number))
        seconds = time.time() - begin
        busy = time.process_time() - busy
        return {"seconds": seconds, "failed": self.failed, "CPU": busy / seconds}

    async def _lane(self, number: int) -> None:
        options = self.options
        lane = _Lane(options.port, self._head())
        loop = asyncio.get_running_loop()
        begin = loop.time()
        # A user has one lane, so that its messages keep their order
        mine = [n for n in range(options.count) if n % options.users % options.lanes == number]
        for start in range(0, len(mine), options.batch):
            if options.rate:
                await asyncio.sleep(max(0.0, begin + mine[start] / options.rate - loop.time()))
            await lane.post(self._body(mine[start : start + options.batch]))
        self.failed += lane.failed

    def _head(self) -> bytes:
        options = self.options
        if options.system == "pushpin":
            path, key = "/publish/", ""
        else:
            path = API if options.batch == 1 else f"{API}-many"
            key = f"Authorization: Bearer {options.key}\r\n"
        text = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{key}"
        return text.encode()

    def _body(self, numbers: list[int]) -> bytes:
        if self.options.system == "pushpin":
            return json.dumps({"items": list(self._items(numbers))}).encode()
        messages = list(self._messages(numbers))
        return json.dumps(
            messages[0] if self.options.batch == 1 else {"messages": messages}
        ).encode()

    def _items(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        for number in numbers:
            text = self._text(number)
            if self.options.transport == "sse":
                event = f"id: {number}\nevent: message\ndata: {text}\n\n"
                formats = {"http-stream": {"content": event}}
            else:
                formats = {"ws-message": {"content": text}}
            yield {"channel": self._user(number) or TOPIC, "formats": formats}

    def _messages(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        service, _, topic = TOPIC.partition(".")
        for number in numbers:
            user = self._user(number)
            target = (
                {"service": "bench", "user": user} if user else {"service": service, "topic": topic}
            )
            message = {**target, "text": self._text(number)}
            if self.options.ids:
                message["msg_id"] = f"{number}"  # it is sent again if there was no answer
            yield message

    def _user(self, number: int) -> str:
        return f"u{number % self.options.users}" if self.options.to == "user" else ""

    def _text(self, number: int) -> str:
        first = USERS_FROM if self.options.to == "user" else 0
        return payload(first + number).decode()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", choices=["ours", "pushpin"])
    parser.add_argument("--port", type=int)
    parser.add_argument("--key", default="", help="of the server API")
    parser.add_argument("--transport", choices=["sse", "ws"])
    parser.add_argument("--to", choices=["topic", "user"])
    parser.add_argument("--users", type=int)
    parser.add_argument("--count", type=int, help="messages")
    parser.add_argument("--rate", type=float, default=0, help="messages a second; 0: all there are")
    parser.add_argument("--lanes", type=int, default=1, help="requests under way at once")
    parser.add_argument("--batch", type=int, default=1, help="messages of a request")
    parser.add_argument("--ids", type=int, default=0, help="1: each message has an id")
    return parser.parse_args()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Publisher(_parse()).run())))
