"""A user who sends and receives all the time while things break, and the count at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from tests.support import Gateway, until
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.connection import ConnectionOptions
from wsgateway.broker.nats.headers import find_int
from wsgateway.client import Backoff, Client
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.gateway.publish_queue import ATTEMPT_TIMEOUT
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Address, Inbox, Subjects, Topic

INBOX = Inbox("faults", "ann")
TOPICS = (Topic("room", "faults"), Topic("board", "faults"))
SITE = {"DJANGO_SETTINGS_MODULE": "tests.topics_app.settings"}
"""The environment of a gateway that serves these topics."""
IN_FLIGHT = 16


@asynccontextmanager
async def broker_at(urls: Sequence[str], prefix: str) -> AsyncIterator[NatsBroker]:
    """A broker of the test's own."""
    broker = NatsBroker(ConnectionOptions(tuple(urls), timeout=10.0), Subjects(prefix), [])
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def sending(
    broker: NatsBroker, inboxes: Sequence[Inbox], number: int
) -> AsyncIterator[Callable[[], int]]:
    """Send from each user one message after the other, as a gateway does, and begin at *number*.

    Yields:
        Returns the number that comes next, until the block ends: then each user has sent those
        below it.
    """
    ended = False

    async def offer(inbox: Inbox) -> None:
        while True:
            try:  # an offer has no deadline: a cluster drops one that comes between two leaders
                async with asyncio.timeout(ATTEMPT_TIMEOUT):
                    frame = Frame.of(f"{inbox.user} {number}")
                    await broker.offer(inbox, frame, f"{inbox} {number}")
                    return
            except (BrokerUnavailable, TimeoutError):
                await asyncio.sleep(0.01)

    async def send() -> None:
        nonlocal number
        while not ended:
            for inbox in inboxes:
                await offer(inbox)
            number += 1

    task = asyncio.create_task(send())
    try:
        yield lambda: number
        ended = True
        await task
    finally:
        task.cancel()


async def stored(broker: NatsBroker, kind: str, inbox: Inbox = INBOX) -> list[bytes]:
    """Return every payload that a stream holds for *inbox*, in order."""
    subject = getattr(broker.subjects, kind)(inbox)
    stream = broker.subjects.stream(kind)
    if kind == "send":
        stream = await broker.services.queue(inbox.service)
    found: list[bytes] = []
    last = 0
    while True:
        request = {"seq": last + 1, "next_by_subj": subject, "batch": 1000, "max_bytes": 8_000_000}
        batch = await broker.jetstream.direct(stream, request)
        if not batch.replies:
            return found
        found += [reply.data for reply in batch.replies]
        last = find_int(batch.replies[-1].headers, b"Nats-Sequence") or 0


class Traffic:
    """Sends through a gateway, publishes through a broker, and receives.

    Args:
        broker: Publishes.
        url: The gateway's websocket.
        inbox: The user.
        pause: Seconds between two messages, each way.
        topics: What the user reads as well, on the same socket; others publish to it.
        options: For `Client`.
    """

    def __init__(
        self,
        broker: NatsBroker,
        url: str,
        inbox: Inbox = INBOX,
        pause: float = 0.002,
        topics: Sequence[Topic] = (),
        **options: Any,
    ) -> None:
        self.broker = broker
        self.inbox = inbox
        self.pause = pause
        self.accepted: list[bytes] = []
        """What the gateway confirmed, in the order of sending."""
        self.published: list[str] = []
        """What the broker confirmed, in order."""
        self.received: list[str | bytes] = []
        self.topics: dict[Topic, tuple[list[str], list[str | bytes]]] = {
            topic: ([], []) for topic in topics
        }
        """What was published and received of each topic."""
        cookie = {"Cookie": f"service={inbox.service}; user={inbox.user}"}
        quick = {"backoff": Backoff(0.05, cap=0.5), "ping_timeout": 3.0}
        options = {"additional_headers": cookie, **quick, **options}
        self.client = Client(url, proxy=None, **options)
        self._ending = False
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        await self.client.open()
        self._tasks = [
            asyncio.create_task(self._send()),
            asyncio.create_task(self._publish(self.inbox, self.published, self.pause)),
            *(
                asyncio.create_task(self._publish(topic, published, 10 * self.pause))
                for topic, (published, _) in self.topics.items()
            ),
        ]
        self._sources = len(self._tasks)
        self._tasks += [
            asyncio.create_task(self._receive()),
            *(
                asyncio.create_task(self._read(topic, received))
                for topic, (_, received) in self.topics.items()
            ),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()

    async def _send(self) -> None:
        """Keep some messages in flight; each `send` returns once it is stored."""
        flying: list[tuple[bytes, asyncio.Task[str]]] = []
        number = 0
        while not self._ending or flying:
            while len(flying) < IN_FLIGHT and not self._ending:
                text = f"up {number}"
                flying.append((text.encode(), asyncio.create_task(self.client.send(text))))
                number += 1
            payload, task = flying.pop(0)
            await task
            self.accepted.append(payload)
            await asyncio.sleep(self.pause)

    async def _publish(self, address: Address, published: list[str], pause: float) -> None:
        number = 0
        while not self._ending:
            text = f"down {number}"
            try:
                await self.broker.publish(address, text.encode(), msg_id=text)
            except BrokerUnavailable:
                continue  # the same one again, with the same id
            published.append(text)
            number += 1
            await asyncio.sleep(pause)

    async def _receive(self) -> None:
        async for message in self.client:
            self.received.append(message.data)

    async def _read(self, topic: Topic, received: list[str | bytes]) -> None:
        async for message in self.client.topic(str(topic), since="all"):
            received.append(message.data)  # noqa: PERF401 - read while it grows

    async def more(self, count: int = 100, timeout: float = 40.0) -> None:
        """Wait until *count* more messages went each way."""
        sent, got = len(self.accepted) + count, len(self.received) + count
        await until(self._failed_or(lambda: len(self.accepted) >= sent), timeout, "sent")
        await until(self._failed_or(lambda: len(self.received) >= got), timeout, "received")

    def _failed_or(self, condition: Any) -> Any:
        def check() -> Any:
            for task in self._tasks:
                if task.done() and task.exception() is not None:
                    task.result()
            return condition()

        return check

    async def finish(self) -> None:
        """Stop sending, and require that everything arrived: once, in order."""
        self._ending = True
        await asyncio.wait_for(asyncio.gather(*self._tasks[: self._sources]), 30)
        await until(lambda: len(self.received) >= len(self.published), 30, "the rest")
        assert self.received == self.published
        for topic, (published, received) in self.topics.items():
            await until(lambda: len(received) >= len(published), 30, f"the rest of {topic}")  # noqa: B023
            assert received == published, topic
            assert published
        found: list[bytes] = []
        async with asyncio.timeout(30):  # a replica that was away answers with what it has
            while len(found) < len(self.accepted):
                found = await stored(self.broker, "send", self.inbox)
        assert found == self.accepted


def ws(gateway: Gateway) -> str:
    """Return the websocket of the traffic's user."""
    return gateway.ws(f"/ws/{INBOX.service}/{INBOX.user}/")
