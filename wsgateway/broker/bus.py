"""What a broker's bus promises: messages to those who listen now, at most once, kept nowhere."""

from __future__ import annotations

import itertools
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from wsgateway.exceptions import BrokerError

__all__ = [
    "Bus",
    "Callbacks",
    "Closable",
    "Handler",
    "Hook",
    "Reply",
    "may_answer",
    "new_reply_subject",
]

logger = logging.getLogger("wsgateway.broker")

Handler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes a message: subject, reply subject (b"" without), payload, and its raw headers, which only
the broker's own code reads; None without. It runs where messages are read: it must not wait."""


class Closable(Protocol):
    """Something that is ended by calling ``close()``; more than once is fine."""

    def close(self) -> None: ...


class Hook(NamedTuple):
    """A `Closable` made of a function."""

    close: Callable[[], None]


class Callbacks:
    """Functions to call when something happens.

    Args:
        event: What happens, for the log.
    """

    def __init__(self, event: str) -> None:
        self._event = event
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._keys = itertools.count()

    def add(self, callback: Callable[[], None]) -> Closable:
        """Call *callback* each time, until what this returns is closed."""
        key = next(self._keys)
        self._callbacks[key] = callback
        return Hook(lambda: self._callbacks.pop(key, None) and None)

    def call(self) -> None:
        """Call all of them. One that fails is logged and does not keep the others from it."""
        for callback in list(self._callbacks.values()):
            try:
                callback()
            except Exception:
                logger.exception("a callback on %s failed", self._event)


class Reply(NamedTuple):
    """An answer: its payload and raw headers."""

    data: bytes
    headers: bytes | None


def new_reply_subject() -> str:
    """Return a new subject for answers that no other subject begins with."""
    return f"_INBOX.{secrets.token_hex(11)}"


def may_answer(reply: bytes, prefix: str) -> bool:
    """Say whether an answer may go to *reply*, which the one who asks has chosen.

    Not to our own subjects, such as a user's inbox, nor to those of NATS: the other may not be
    permitted to publish there.

    Args:
        reply: A reply subject; b"" without.
        prefix: First tokens of our own subjects.
    """
    return bool(reply) and not reply.startswith((f"{prefix}.".encode(), b"$"))


class Bus(ABC):
    """Core messaging on one connection. Call everything in the loop that opened its broker.

    Every method may raise `BrokerClosed` after the broker was closed.

    A subject consists of tokens joined by dots. What one connection publishes arrives in that
    order. Nothing is stored: what nobody listens to is gone, and so is what is under way when a
    connection is lost.
    """

    max_payload: int
    """Bytes that one message may have, headers included."""
    times_connected: int
    """How often it has connected: what was in effect before the last time may not be any more."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether publishing is possible now."""

    @abstractmethod
    async def ready(self, timeout: float | None = None) -> None:
        """Wait until `is_open`.

        Args:
            timeout: Seconds; None: ``WSGATEWAY_BROKER_TIMEOUT``.

        Raises:
            BrokerUnavailable: Not within *timeout*.
            BrokerClosed: It was already closed, or was closed while waiting.
        """

    @abstractmethod
    def on_open(self, callback: Callable[[], None]) -> Closable:
        """Call *callback* each time it connects, after the subscriptions are back."""

    @abstractmethod
    def on_lost(self, callback: Callable[[], None]) -> Closable:
        """Call *callback* each time the connection is lost."""

    @abstractmethod
    def publish(self, subject: str, payload: bytes, *, reply: str = "") -> None:
        """Send a message; do not wait.

        Args:
            subject: A valid subject; not checked here.
            payload: Bytes, at most `max_payload`.
            reply: Where answers go.

        Raises:
            BrokerUnavailable: Not connected, or the other side has stopped reading.
        """

    @abstractmethod
    def send_now(self) -> None:
        """Write what was published, without waiting for this turn of the loop to end."""

    @abstractmethod
    async def pressure(self) -> None:
        """Wait while much of what was published waits to be written."""

    @abstractmethod
    async def confirm(self) -> None:
        """Wait until everything sent so far has arrived: messages, subscriptions.

        Concurrent calls share a round trip. `Broker.in_effect` does more, for subscriptions.

        Raises:
            BrokerUnavailable: Not in time, or not connected.
            BrokerForbidden: The broker forbids a subscription made since the last call.
        """

    @abstractmethod
    def subscribe(
        self, subject: str, handler: Handler, queue: str = "", *, optional: bool = False
    ) -> Closable:
        """Call *handler* for each message, in the order of arrival over all subscriptions.

        May be called while not connected. Outlives connections.

        Args:
            subject: A whole subject; a token ``*`` stands for any one token.
            handler: Whom to call.
            queue: Each message goes to one of the subscriptions with the same queue.
            optional: Whether the work goes on if the broker forbids it: then only the log says so,
                and no caller of `confirm` gets an error.
        """

    @abstractmethod
    async def request(self, subject: str, payload: bytes) -> Reply:
        """Publish, and return the first answer.

        Raises:
            NobodyAnswers: Nobody listens there.
            BrokerUnavailable: No answer in time, or the connection was lost.
        """

    @abstractmethod
    def request_many(
        self,
        subject: str,
        payload: bytes,
        on_answer: Callable[[bytes], None],
        on_failure: Callable[[BrokerError], None],
    ) -> Closable:
        """Publish, and call *on_answer* with each answer until what this returns is closed.

        One process's answers come in the order in which it gives them, whichever request they
        answer; and it gets requests in the order of these calls.

        Args:
            subject: Where.
            payload: Bytes, at most `max_payload`.
            on_answer: Takes an answer's payload. Neither of the two may wait or raise.
            on_failure: Called at most once, when no answer can come any more: with
                `NobodyAnswers` if nobody listens there, which is known after a round trip.

        Raises:
            BrokerUnavailable: Not connected.
        """
