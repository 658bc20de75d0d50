"""Messages before they are sent: what they hold, and every check that needs no broker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from wsgateway.broker.messages import check_address, check_published
from wsgateway.conf import settings
from wsgateway.exceptions import MessageTooBig
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox, Topic, encode_token

__all__ = ["NOTHING", "Binary", "Outgoing", "OutgoingTopic", "frame_of"]

NOTHING: Any = object()
Binary = bytes  # the name is an argument's below
_dumps = DjangoJSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def frame_of(text: str | None, bytes: Binary | None, json: Any) -> Frame:
    """Return the frame that the one given argument stands for.

    Raises:
        TypeError: None or several are given, or of the wrong type.
        ValueError: A number that JSON does not have, such as NaN, or invalid Unicode.
    """
    each = {"text": text is not None, "bytes": bytes is not None, "json": json is not NOTHING}
    if sum(each.values()) != 1:
        names = [name for name, given in each.items() if given]
        raise TypeError(
            f"pass exactly one of text, bytes or json (got {' and '.join(names) or 'none'})"
        )
    if json is not NOTHING:
        # Not as ASCII: half a surrogate pair would pass, and no reader could store it.
        return Frame.of(_dumps(json))
    data = text if text is not None else bytes
    if text is not None and not isinstance(text, str):
        raise TypeError(f"text must be str, not {type(text).__name__}; use bytes or json")
    if text is None and not isinstance(data, (Binary, bytearray, memoryview)):
        raise TypeError(f"bytes must be bytes, not {type(data).__name__}; use text or json")
    assert data is not None
    return Frame.of(data if isinstance(data, str) else Binary(data))


@dataclass(frozen=True)
class Outgoing:
    """One message of `send_many` for a user; the arguments are those of `send`."""

    service: str
    user: str
    text: str | None = None
    bytes: Binary | None = None
    json: Any = field(default=NOTHING)
    ttl: float | None = None
    msg_id: str | None = None
    headers: Mapping[str, str] | None = None

    def prepare(self) -> tuple[Inbox, Frame]:
        """Return address and frame, after every check that needs no broker.

        Raises:
            TypeError: Not exactly one of text, bytes and json, or of a wrong type.
            MessageTooBig: Larger than ``WSGATEWAY_MAX_MESSAGE_SIZE``.
            NameRefused: *service* or *user* is empty or too long, or nobody can have that name.
            ValueError: The ttl is out of range, a header or *msg_id* is malformed, or the text
                or JSON cannot be written as UTF-8.
        """
        inbox = Inbox(self.service, self.user)
        check_address(inbox)
        return inbox, _prepare(self, *inbox)


@dataclass(frozen=True)
class OutgoingTopic:
    """One message of `send_many` for a topic; the arguments are those of `send_topic`."""

    service: str
    name: str
    text: str | None = None
    bytes: Binary | None = None
    json: Any = field(default=NOTHING)
    ttl: float | None = None
    msg_id: str | None = None
    headers: Mapping[str, str] | None = None

    def prepare(self) -> tuple[Topic, Frame]:
        """Do what `Outgoing.prepare` does."""
        return Topic(self.service, self.name), _prepare(self, self.service, self.name)


def _prepare(message: Outgoing | OutgoingTopic, *names: str) -> Frame:
    for name in names:
        encode_token(name)
    check_published(message.headers, message.ttl, message.msg_id)
    frame = frame_of(message.text, message.bytes, message.json)
    if len(frame.payload) > settings.MAX_MESSAGE_SIZE:
        raise MessageTooBig(len(frame.payload), settings.MAX_MESSAGE_SIZE)
    return frame
