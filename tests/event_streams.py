"""Readers of server-sent events for tests: a parser as browsers have it, and an ASGI client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import httpx

from tests.support import until
from wsgateway.broker.base import Broker
from wsgateway.protocol.subjects import Topic


class Event(NamedTuple):
    """What a browser dispatches; *id* is its ``lastEventId``."""

    name: str
    data: str
    id: str

    @property
    def fields(self) -> Any:
        return json.loads(self.data)


class Parser:
    """Parses a stream of whole events. Source: WHATWG HTML, "Interpreting an event stream"."""

    def __init__(self) -> None:
        self.id = ""
        self.retry: int | None = None
        self.comments = 0

    def feed(self, text: str) -> Iterator[Event]:
        name, data = "", ""
        for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            if not line:
                if data:
                    yield Event(name or "message", data.removesuffix("\n"), self.id)
                name, data = "", ""
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "":
                self.comments += 1
            elif field == "event":
                name = value
            elif field == "data":
                data += value + "\n"
            elif field == "id" and "\0" not in value:
                self.id = value
            elif field == "retry":
                self.retry = int(value)


async def read_events(response: httpx.Response, parser: Parser) -> AsyncIterator[Event]:
    """Yield the events of a response. An event that is cut off does not count."""
    buffered = ""
    async for text in response.aiter_text():
        *whole, buffered = (buffered + text).split("\n\n")
        for block in whole:
            for event in parser.feed(block + "\n\n"):
                yield event


async def until_declared(broker: Broker, topic: Topic) -> None:
    """Wait until *broker* has heard of the streams that a gateway makes when it starts."""
    async with asyncio.timeout(20):
        while not await broker.topics_of(topic.service):
            await asyncio.sleep(0.05)


class Reader:
    """Reads over ASGI, without a server."""

    def __init__(self, app: Any, path: str, query: str = "", **headers: str) -> None:
        self.parser = Parser()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.events: list[Event] = []
        self.ended = False
        self.reads = asyncio.Event()
        self.reads.set()
        self.method = "GET"
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._queue.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        self._app = app
        self._scope = {
            "type": "http",
            "path": path,
            "query_string": query.encode(),
            "headers": [
                (name.replace("_", "-").encode(), value.encode())
                for name, value in {"host": "testserver", **headers}.items()
            ],
        }

    async def __aenter__(self) -> Reader:
        scope = {**self._scope, "method": self.method}
        self._task = asyncio.create_task(self._app(scope, self._queue.get, self._send))
        await until(lambda: self.status or self._task.done(), what="a response")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.put_nowait({"type": "http.disconnect"})
        await self._task

    async def _send(self, event: Any) -> None:
        await self.reads.wait()
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {name.decode(): value.decode() for name, value in event["headers"]}
            return
        self.body += event["body"]
        if "event-stream" in self.headers.get("content-type", ""):
            self.events += self.parser.feed(event["body"].decode())
        if not event.get("more_body"):
            self.ended = True
            self._queue.put_nowait({"type": "http.disconnect"})

    @property
    def problem(self) -> Any:
        """The document that says why the request is refused."""
        assert self.headers["content-type"] == "application/problem+json"
        return json.loads(self.body)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    async def has(self, *expected: str, name: str = "message") -> list[Event]:
        """Wait until exactly these messages have come; return their events."""

        def got() -> list[str]:
            return [event.data for event in self.named(name)]

        await until(lambda: got() == [*expected], 10, f"{expected}, not {got()}, {self.body!r}")
        return self.named(name)
