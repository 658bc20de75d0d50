"""The memory broker's bus: subscriptions that brokers with the same store share."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from wsgateway.broker.bus import Bus, Closable, Handler, Hook, Reply, new_reply_subject
from wsgateway.conf import settings
from wsgateway.exceptions import BrokerClosed, BrokerError, BrokerUnavailable, NobodyAnswers

if TYPE_CHECKING:
    from wsgateway.broker.memory.broker import MemoryBroker

__all__ = ["ALREADY_CLOSED", "Exchange", "MemoryBus"]

ALREADY_CLOSED = "the broker is already closed; open a new one"


class _Subscription:
    """One handler; called in the loop that subscribed, in the order of publishing."""

    def __init__(
        self, exchange: Exchange, owners: set[Closable], subject: str, handler: Handler, queue: str
    ) -> None:
        self.queue = queue
        self._exchange = exchange
        self._owners = owners
        self._subject = subject
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._is_closed = False
        owners.add(self)

    def deliver(self, subject: bytes, reply: bytes, payload: bytes) -> None:
        """Have the handler called soon. From any thread."""
        with contextlib.suppress(RuntimeError):  # its loop is closed
            if asyncio._get_running_loop() is self._loop:
                self._loop.call_soon(self._call, subject, reply, payload)
            else:
                self._loop.call_soon_threadsafe(self._call, subject, reply, payload)

    def _call(self, subject: bytes, reply: bytes, payload: bytes) -> None:
        if not self._is_closed:
            self._handler(subject, reply, payload, None)

    def close(self) -> None:
        self._is_closed = True
        self._owners.discard(self)
        self._exchange.remove(self._subject, self)


class Exchange:
    """Who listens to what. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: dict[str, list[_Subscription]] = {}
        self._patterns: dict[str, re.Pattern[str]] = {}  # of those subjects that hold "*"

    def add(self, subject: str, subscription: _Subscription) -> None:
        with self._lock:
            self._subscriptions.setdefault(subject, []).append(subscription)
            if "*" in subject:
                pattern = re.escape(subject).replace(r"\*", r"[^.]+")
                self._patterns[subject] = re.compile(rf"{pattern}\Z")

    def remove(self, subject: str, subscription: _Subscription) -> None:
        """Take a subscription out. Idempotent."""
        with self._lock:
            found = self._subscriptions.get(subject, [])
            if subscription in found:
                found.remove(subscription)
            if not found:
                self._subscriptions.pop(subject, None)
                self._patterns.pop(subject, None)

    def publish(self, subject: str, payload: bytes, reply: str) -> int:
        """Hand a message to all, and to one of each queue; return to how many."""
        with self._lock:
            found = self._listening(subject)
            receivers = [each for each in found if not each.queue]
            queues: dict[str, list[_Subscription]] = {}
            for each in found:
                if each.queue:
                    queues.setdefault(each.queue, []).append(each)
            receivers += [random.choice(members) for members in queues.values()]  # noqa: S311
            # With the lock, so that two publishers' messages reach all in the same order
            for each in receivers:
                each.deliver(subject.encode(), reply.encode(), payload)
        return len(receivers)

    def _listening(self, subject: str) -> list[_Subscription]:
        found = list(self._subscriptions.get(subject, ()))
        for wildcard, pattern in self._patterns.items():
            if pattern.match(subject):
                found += self._subscriptions[wildcard]
        return found


class MemoryBus(Bus):
    """See `Bus`.

    Args:
        broker: Whose.
        exchange: Its store's.
    """

    max_payload = sys.maxsize

    def __init__(self, broker: MemoryBroker, exchange: Exchange) -> None:
        self._broker = broker
        self._exchange = exchange
        self._subscriptions: set[Closable] = set()
        self._answers: set[asyncio.Future[Reply]] = set()  # that requests wait for
        self._failures: dict[Closable, Callable[[BrokerError], None]] = {}  # of `request_many`

    @property
    def times_connected(self) -> int:  # type: ignore[override]
        return int(self._broker.connected)

    @property
    def is_open(self) -> bool:
        return self._broker.connected

    async def ready(self, timeout: float | None = None) -> None:
        self._broker.require_open()

    def on_open(self, callback: Callable[[], None]) -> Closable:
        return self._broker.on_ready(callback)

    def on_lost(self, callback: Callable[[], None]) -> Closable:
        return self._broker.on_lost(callback)

    def publish(self, subject: str, payload: bytes, *, reply: str = "") -> None:
        self._broker.require_open()
        self._exchange.publish(subject, payload, reply)

    def send_now(self) -> None:
        pass

    async def pressure(self) -> None:
        pass

    async def confirm(self) -> None:
        self._broker.require_open()
        loop = asyncio.get_running_loop()
        arrived = loop.create_future()
        loop.call_soon(arrived.set_result, None)  # after the messages for this loop
        await asyncio.shield(arrived)

    def subscribe(
        self, subject: str, handler: Handler, queue: str = "", *, optional: bool = False
    ) -> Closable:
        self._broker.require_not_closed()
        made = _Subscription(self._exchange, self._subscriptions, subject, handler, queue)
        self._exchange.add(subject, made)
        return made

    async def request(self, subject: str, payload: bytes) -> Reply:
        self._broker.require_open()
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def on_answer(_s: bytes, _r: bytes, data: bytes, headers: bytes | None) -> None:
            if not answer.done():
                answer.set_result(Reply(data, headers))

        reply = new_reply_subject()
        subscription = self.subscribe(reply, on_answer)
        self._answers.add(answer)
        try:
            if not self._exchange.publish(subject, payload, reply):
                raise NobodyAnswers(f"nobody answers on {subject}")
            async with asyncio.timeout(settings.BROKER_TIMEOUT):
                return await answer
        except TimeoutError as exc:
            limit = settings.BROKER_TIMEOUT
            raise BrokerUnavailable(f"no answer on {subject} within {limit:.3g} s") from exc
        finally:
            self._answers.discard(answer)
            subscription.close()

    def request_many(
        self,
        subject: str,
        payload: bytes,
        on_answer: Callable[[bytes], None],
        on_failure: Callable[[BrokerError], None],
    ) -> Closable:
        self._broker.require_open()

        def handle(_s: bytes, _r: bytes, data: bytes, _h: bytes | None) -> None:
            on_answer(data)

        def fail() -> None:
            if self._failures.pop(answers, None):
                on_failure(NobodyAnswers(f"nobody answers on {subject}"))

        def end() -> None:
            self._failures.pop(answers, None)
            answers.close()

        reply = new_reply_subject()
        answers = self.subscribe(reply, handle)
        self._failures[answers] = on_failure
        if not self._exchange.publish(subject, payload, reply):
            asyncio.get_running_loop().call_soon(fail)
        return Hook(end)

    def close(self) -> None:
        """End every subscription, fail every request."""
        failures, self._failures = self._failures, {}
        for on_failure in failures.values():
            on_failure(BrokerClosed(ALREADY_CLOSED))
        for subscription in list(self._subscriptions):
            subscription.close()
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(BrokerClosed(ALREADY_CLOSED))
