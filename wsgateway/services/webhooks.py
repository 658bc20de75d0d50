"""The handler of a service with a webhook: posts each message, and does what the answer says."""

from __future__ import annotations

import base64
import codecs
import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from wsgateway.conf import settings
from wsgateway.exceptions import BrokerUnavailable, QueueFull
from wsgateway.protocol.strict_json import loads
from wsgateway.services.errors import Pause, Reject, ReplyPending, Retry
from wsgateway.services.failure import one_line
from wsgateway.tracing import context_headers
from wsgateway.webhooks.addresses import AddressRefused
from wsgateway.webhooks.sender import PostFailed, Sender
from wsgateway.webhooks.verdicts import Gone, Refusal, Reply, TryAgain, judge

if TYPE_CHECKING:
    from wsgateway.protocol.frames import Frame
    from wsgateway.services.message import Message
    from wsgateway.webhooks.config import Endpoint

__all__ = ["WebhookFailed", "WebhookHandler", "body_of", "id_of"]

LONGEST_PAUSE = 3600.0
"""Seconds that ``Retry-After`` may ask for: the user's later messages wait, too."""


class WebhookFailed(Retry):
    """A webhook did not answer, or not as it should; the message is posted again."""

    at_least = True  # a proxy's "Retry-After: 1" must not use up all tries within seconds


class WebhookHandler:
    """Handles messages in one event loop.

    Args:
        endpoint: Where they are posted.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._sender: Sender | None = None

    async def __call__(self, message: Message) -> None:
        """Post a message, and reply with the answer.

        Raises:
            Reject: The endpoint refuses the message.
            WebhookFailed: It is not handled.
            Pause: There is no such endpoint any more.
            ReplyPending: It is handled; only the reply is not stored yet.
        """
        if self._sender is None:
            self._sender = Sender(self._endpoint, settings.MAX_MESSAGE_SIZE)
        began = time.monotonic()
        try:
            answer = await self._sender.post(id_of(message.id), body_of(message), context_headers())
        except (PostFailed, AddressRefused) as exc:
            raise WebhookFailed(str(exc)) from exc
        match judge(answer, time.time()):
            case Reply(text):
                if text is not None:
                    await _reply(message, text)
            case Refusal(code, reason):
                raise Reject(reason, code=code)
            case TryAgain(reason, after):
                after = None if after is None else min(after, LONGEST_PAUSE)
                raise WebhookFailed(f"{self._endpoint.origin}: {reason}", after=after)
            case Gone():
                reason = f"{self._endpoint.origin}: it answered 410, so it is gone for good"
                raise Pause(reason, since=began)

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._sender is not None:
            await self._sender.close()
            self._sender = None


async def _reply(message: Message, text: str) -> None:
    try:
        await message.reply(text=text)
    except (BrokerUnavailable, QueueFull) as exc:
        raise ReplyPending(text, one_line(exc)) from exc


def id_of(id: str) -> str:
    """Return the ``webhook-id`` of a message: a full stop would end it in what is signed."""
    return f"msg_{quote(id, safe='').replace('.', '_')}"


def body_of(message: Message) -> bytes:
    """Return what is posted, as JSON."""
    fields: dict[str, Any] = {
        "type": "message",
        "service": message.service,
        "user": message.user_name,
        "user_service": message.sender.service,
        "topic": None if message.topic is None else str(message.topic),
        "device": message.device,
        "connection": message.connection,
        "offset": message.offset,
        "attempt": message.attempt,
        "time": message.time.isoformat(timespec="milliseconds"),
        "wants_reply": message.wants_reply,
    }
    # The client's JSON goes through as it is: other parsers may keep digits that Python's does not
    head = json.dumps(fields, ensure_ascii=False).encode()
    return b'%b, "data": %b}' % (head[:-1], _data_of(message.frame))


def _data_of(frame: Frame) -> bytes:
    """Return the payload as a JSON object with one member: ``json``, ``text`` or ``base64``."""
    if not frame.text:
        return json.dumps({"base64": base64.b64encode(frame.payload).decode()}).encode()
    try:
        loads(frame.payload)
    except (ValueError, RecursionError):
        return json.dumps({"text": frame.payload.decode()}, ensure_ascii=False).encode()
    return b'{"json": %b}' % frame.payload.removeprefix(codecs.BOM_UTF8)
