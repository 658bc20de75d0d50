"""What the application sends, and its callers that wait for the gateway's answers."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from itertools import count
from typing import Any

from wsgateway.client.calls import Calls
from wsgateway.client.errors import GatewayError
from wsgateway.client.message import Message
from wsgateway.client.sending import Sending
from wsgateway.client.subscription import Subscription
from wsgateway.protocol.frames import Frame
from wsgateway.tracing import find_tracer

__all__ = ["REQUEST_TIMEOUT", "Exchange"]

REQUEST_TIMEOUT = 30.0


class Exchange:
    """Sends messages and requests, and returns when they are answered.

    Args:
        sending: Decides what to write.
        wake: Called when there may be something to write.
    """

    def __init__(self, sending: Sending, wake: Callable[[], None]) -> None:
        self._sending = sending
        self.wake = wake
        """Call this when there may be something to write."""
        self._sends = Calls[None](self._give_up)  # what is in the outbox
        self._requests = Calls[Message](self._give_up_request)  # replies to come
        self._ids = count(1)
        self._prefix = secrets.token_urlsafe(9)

    def confirmed(self, id: str, error: GatewayError | None = None) -> None:
        """Take the word that a message is stored, or the *error* why it is not."""
        self._sends.resolve(id, error)

    def answered(self, id: str, answer: Message | GatewayError) -> None:
        """Take the reply to a request."""
        self._requests.resolve(id, answer)

    async def send(
        self, data: Any, id: str | None, subscription: Subscription | None = None
    ) -> str:
        """Publish *data* and return its id once it is stored; see `Client.send`.

        Args:
            data: What to send.
            id: Its id; None: a new one.
            subscription: To which topic; None: to the client's service.
        """
        id = id if id is not None else self._new_id()
        frame, topic = _frame(data), _topic(subscription, id)
        if id not in self._sends:
            self._sending.send(id, frame, trace=_trace(), topic=topic)
        with self._sends.joined(id) as confirmed:
            self.wake()
            await asyncio.shield(confirmed)
        return id

    async def request(
        self,
        data: Any,
        id: str | None,
        timeout: float | None,
        subscription: Subscription | None = None,
    ) -> Message:
        """Publish *data* and return the service's reply; see `send` and `Client.request`."""
        id = id if id is not None else self._new_id()
        frame, topic = _frame(data), _topic(subscription, id)
        self._sending.request(id, frame, trace=_trace(), topic=topic)
        with self._requests.joined(id) as reply:
            self.wake()
            try:
                async with asyncio.timeout(timeout):
                    return await asyncio.shield(reply)
            except TimeoutError as exc:
                raise TimeoutError(self._why_late(id, topic, timeout)) from exc

    def _why_late(self, id: str, topic: str | None, timeout: float | None) -> str:
        within = f"within {timeout:g} s"
        if self._sending.is_unconfirmed(id):
            return (
                f"the gateway did not confirm request {id!r} {within}; it may have been stored: "
                "retry with the same id"
            )
        who = "the service" if topic is None else f"topic {topic!r}"
        return f"no reply from {who} to request {id!r} {within}; it may still be handled"

    def _give_up(self, id: str) -> None:
        if id not in self._requests:
            self._sending.give_up(id)
            self.wake()  # the window may have room

    def _give_up_request(self, id: str) -> None:
        self._sending.expect_no_reply(id)
        if id not in self._sends:
            self._sending.give_up(id)
            self.wake()

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._ids)}"


def _topic(subscription: Subscription | None, id: str) -> str | None:
    """Return where a message goes; raise why it cannot."""
    if subscription is None:
        return None
    if subscription.error is not None:
        raise subscription.error.about(id)
    return subscription.topic


def _trace() -> dict[str, str] | None:
    """Return the context of the caller's span; None if the program does not trace."""
    tracer = find_tracer()
    return None if tracer is None else tracer.inject_w3c()


def _frame(data: Any) -> Frame:
    if isinstance(data, bytes | bytearray | memoryview):
        return Frame(bytes(data), False)
    if not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Frame.of(data)
