"""The subprotocol ``wsgateway.v1``: frames to objects and back, and the heartbeat. Pure.

Both ends use it: the gateway parses with `parse_client`, the Python client with `parse_server`.
A parser returns, or raises `ProtocolError`, whatever it is fed. ``docs/protocol.md`` describes
each message; ``protocol.schema.json`` beside the JavaScript client is checked against this module.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum
from json.encoder import encode_basestring as _quote
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from wsgateway.exceptions import WsGatewayError
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.strict_json import NotStrict, refuse_constant, unique

__all__ = [
    "SUBPROTOCOL",
    "SUBPROTOCOLS",
    "Accepted",
    "Ack",
    "Beat",
    "ClientMessage",
    "Closing",
    "ErrorCode",
    "Heartbeat",
    "Ping",
    "Pong",
    "ProtocolError",
    "Reason",
    "Refused",
    "Resume",
    "ServerMessage",
    "Unknown",
    "Welcome",
    "choose_subprotocol",
    "encode_ack",
    "encode_client_ack",
    "encode_client_message",
    "encode_closing",
    "encode_error",
    "encode_message",
    "encode_ping",
    "encode_pong",
    "encode_welcome",
    "largest_frame",
    "largest_message",
    "parse_client",
    "parse_resume",
    "parse_server",
    "valid_id",
]

SUBPROTOCOL = "wsgateway.v1"
SUBPROTOCOLS = (SUBPROTOCOL,)
"""What this version speaks, the best first."""

MAX_OFFSET = 2**53 - 1
"""Largest integer that JavaScript holds exactly."""
MAX_EPOCH = 128
MAX_AFTER = 3600
"""Longest delay, in seconds, that a gateway asks for."""
MAX_PING = 86400
"""What a welcome's ``ping`` is below, seconds."""
MAX_QUERY_FIELDS = 32
REQUEST = '"request":true,'
GROWTH = 6
"""How many times larger than a message the text in its frame can be: ``\\u0000``."""
OVERHEAD = 4096
"""Bytes of a frame that are not its message, at most."""

_ID = re.compile(r"[!-~]{1,64}\Z")
_DIGITS = re.compile(r"[0-9]{1,16}\Z")
_PLAIN_ACK = re.compile(
    r'\{"type":"ack","offset":(0|[1-9][0-9]{0,14})(?:,"epoch":"([!#-\[\]-~]{1,128})")?\}\Z'
)
"""As both of our clients write it: most of what a gateway gets, so it is not parsed as JSON."""


class ErrorCode(StrEnum):
    """Why a client's frame was refused; *temporary* if it may be sent again as it is."""

    temporary: bool
    meaning: str

    def __new__(cls, value: str, temporary: bool, meaning: str) -> ErrorCode:
        member = str.__new__(cls, value)
        member._value_ = value
        member.temporary = temporary
        member.meaning = meaning
        return member

    BAD_REQUEST = "bad_request", False, "the frame is not as the protocol wants it"
    UNKNOWN_TYPE = "unknown_type", False, "this gateway does not know that type of message"
    TOO_BIG = "too_big", False, "the message is larger than the gateway takes"
    QUEUE_FULL = "queue_full", True, "the service's queue is at its limit; nothing was stored"
    RATE_LIMIT = "rate_limit", True, "the client sends faster than it may; nothing was stored"
    UNAVAILABLE = "unavailable", True, "the broker did not confirm it; perhaps it is stored"
    INTERNAL = "internal", True, "the gateway failed; perhaps it is stored"


class Reason(StrEnum):
    """Why a welcome says ``recovered: false``; clients accept others too."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Reason:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    NEW = "new", "neither the client nor its device has a position yet"
    EPOCH = "epoch", "the stream is another one than the client's position belongs to"
    TRIMMED = "trimmed", "messages after the position may have expired or been trimmed"
    AHEAD = "ahead", "the stream lost its end, and the position is beyond it"


class ProtocolError(WsGatewayError, ValueError):
    """A frame or query that the protocol does not allow.

    Args:
        code: What to answer with.
        message: Short text for the developer at the other end; never holds a payload.
        id: The refused message's id, if it could be read.
        fatal: The other end speaks something else; close with 4500 instead of an answer.
    """

    def __init__(
        self, code: ErrorCode, message: str, id: str | None = None, *, fatal: bool = False
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.id = id
        self.fatal = fatal

    def __str__(self) -> str:
        return self.message


@dataclass(slots=True)
class ClientMessage:
    """What a client publishes; *id* makes a retry idempotent, *request* asks for a reply."""

    id: str
    frame: Frame
    request: bool = False


@dataclass(slots=True)
class Ack:
    """The client has everything up to *offset*. It may be more than was sent: clamp it.

    Without *epoch* nobody knows whether it is about the stream before, once that was replaced.
    """

    offset: int
    epoch: str | None = None


@dataclass(slots=True)
class Ping:
    """Answer with a pong."""


@dataclass(slots=True)
class Pong:
    """The answer to a ping."""


@dataclass(slots=True)
class Welcome:
    """Where delivery begins.

    Attributes:
        offset: The first message has a larger offset.
        recovered: Nothing between the client's position and what follows is missing.
        reason: Why *recovered* is false, see `Reason`; None if it is true.
        ping: Seconds between the gateway's pings.
        window: Messages that the gateway sends without acknowledgement.
        max_message_size: Largest payload that the gateway takes, bytes, however it is encoded.
    """

    connection: str
    service: str
    user: str
    device: str
    epoch: str
    offset: int
    recovered: bool
    reason: str | None
    ping: float
    window: int
    max_message_size: int


@dataclass(slots=True)
class ServerMessage:
    """A message of the inbox.

    Attributes:
        time: RFC 3339 text; None if not known.
        reply_to: Id of the client's message that this answers; None if it answers none.
        error: Why the service refused that message; None unless it did.
    """

    offset: int
    time: str | None
    frame: Frame
    reply_to: str | None = None
    error: str | None = None


@dataclass(slots=True)
class Accepted:
    """The client's message *id* is stored."""

    id: str


@dataclass(slots=True)
class Refused:
    """The client's message *id* was refused; None if the gateway could not read the id."""

    id: str | None
    code: str
    message: str
    temporary: bool


@dataclass(slots=True)
class Closing:
    """The gateway is about to close the connection.

    Attributes:
        reconnect_after: Seconds to wait before the next attempt, instead of the client's backoff.
    """

    reconnect_after: float


@dataclass(slots=True)
class Unknown:
    """A type of a later version; clients ignore it."""

    type: str


@dataclass(slots=True)
class Resume:
    """What a client asks for when it connects; both *epoch* and *offset*, or neither."""

    device: str | None = None
    epoch: str | None = None
    offset: int | None = None


def choose_subprotocol(offered: Iterable[str]) -> str | None:
    """Return the best subprotocol that both ends speak; None if there is none."""
    names = set(offered)
    return next((name for name in SUBPROTOCOLS if name in names), None)


def parse_resume(query_string: bytes) -> Resume:
    """Return where a client wants to go on.

    Raises:
        ProtocolError: Always fatal: a field is malformed or given twice, or one of epoch and
            offset is missing.
    """
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except ValueError as exc:
        raise _fatal("the query string cannot be read") from exc
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in ("device", "epoch", "offset"):
            if name in fields:
                raise _fatal(f"{name} is given twice")
            fields[name] = value
    epoch, offset = fields.get("epoch"), fields.get("offset")
    if (epoch is None) != (offset is None):
        raise _fatal("epoch and offset belong together; give both or neither")
    if epoch is not None and not 0 < len(epoch) <= MAX_EPOCH:
        raise _fatal(f"epoch must have 1 to {MAX_EPOCH} characters")
    if offset is None:
        return Resume(fields.get("device") or None)
    if not _DIGITS.match(offset) or int(offset) > MAX_OFFSET:
        raise _fatal(f"offset must be an integer from 0 to {MAX_OFFSET}")
    return Resume(fields.get("device") or None, epoch, int(offset))


def largest_frame(size: int) -> int:
    """Return the bytes of a frame around a message of *size* bytes, however it is encoded."""
    return GROWTH * size + OVERHEAD


def largest_message(size: int) -> int:
    """Return the bytes of a message that fits a frame of *size* bytes, however it is encoded."""
    return max(0, (size - OVERHEAD) // GROWTH)


def _fatal(message: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_REQUEST, message, fatal=True)


# -- encoding ----------------------------------------------------------------------------


def encode_message(
    offset: int,
    time: str,
    payload: bytes,
    text: bool,
    reply_to: str | None = None,
    error: str | None = None,
) -> str:
    """Return the frame for a stored message; built by hand, because this is the hot path.

    Args:
        offset: Its offset.
        time: RFC 3339 text; empty if not known.
        payload: The message; UTF-8 if *text*.
        text: Whether it is a text frame.
        reply_to: Id of the client's message that it answers.
        error: Why the service refused that message.
    """
    head = f'{{"type":"message","offset":{offset},"time":{_quote(time) if time else "null"},'
    if reply_to is not None:
        head += f'"reply_to":{_quote(reply_to)},'
    if error is not None:
        head += f'"error":{_quote(error)},'
    if text:
        return f'{head}"data":{_quote(payload.decode())}}}'
    return f'{head}"bytes":"{b64encode(payload).decode()}"}}'


def encode_welcome(
    *,
    connection: str,
    service: str,
    user: str,
    device: str,
    epoch: str,
    offset: int,
    recovered: bool,
    ping: float,
    window: int,
    max_message_size: int,
    reason: str | None = None,
) -> str:
    """Return the first frame of a connection, see `Welcome`.

    It may be sent again. When the stream was replaced or lost its end under an open socket, the
    client then forgets its position and takes this one; with *reason* trimmed, it keeps its own.
    """
    fields: dict[str, object] = {
        "type": "welcome",
        "connection": connection,
        "service": service,
        "user": user,
        "device": device,
        "epoch": epoch,
        "offset": offset,
        "recovered": recovered,
    }
    if reason is not None:
        fields["reason"] = str(reason)
    fields |= {"ping": ping, "window": window, "max_message_size": max_message_size}
    return _dumps(fields)


def encode_ack(id: str) -> str:
    """Return the gateway's word that the client's message is stored."""
    return f'{{"type":"ack","id":{_quote(id)}}}'


def encode_error(
    id: str | None, code: ErrorCode, message: str, temporary: bool | None = None
) -> str:
    """Return a refusal.

    Args:
        id: Of the refused message; None if the frame had none that could be read.
        code: Why.
        message: Short text for the developer at the other end.
        temporary: Whether the same message may be sent again; None: as *code* says.
    """
    may_retry = code.temporary if temporary is None else temporary
    return _dumps(
        {"type": "error", "id": id, "code": code.value, "message": message, "temporary": may_retry}
    )


def encode_closing(reconnect_after: float) -> str:
    """Return the announcement of a close, see `Closing`."""
    return f'{{"type":"closing","reconnect_after":{reconnect_after:.3f}}}'


def encode_ping() -> str:
    """Return a ping; either end may send it."""
    return '{"type":"ping"}'


def encode_pong() -> str:
    """Return the answer to a ping."""
    return '{"type":"pong"}'


def encode_client_message(id: str, frame: Frame, *, request: bool = False) -> str:
    """Return the frame with which a client publishes."""
    head = f'{{"type":"message","id":{_quote(id)},{REQUEST if request else ""}'
    if frame.text:
        return f'{head}"data":{_quote(frame.payload.decode())}}}'
    return f'{head}"bytes":"{b64encode(frame.payload).decode()}"}}'


def encode_client_ack(offset: int, epoch: str) -> str:
    """Return the client's word that it has everything up to *offset* of *epoch*."""
    return f'{{"type":"ack","offset":{offset},"epoch":{_quote(epoch)}}}'


_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


# -- parsing -----------------------------------------------------------------------------


def parse_client(text: str | bytes) -> ClientMessage | Ack | Ping | Pong:
    """Return what a client's websocket frame means. Unknown fields are ignored.

    Raises:
        ProtocolError: Fatal for a binary frame only; else answer it and go on.
    """
    plain = _PLAIN_ACK.match(text) if isinstance(text, str) else None
    if plain is not None:
        return Ack(int(plain[1]), plain[2])
    fields = _load(text)
    kind = fields["type"]
    if kind == "ack":
        epoch = None if fields.get("epoch") is None else _string(fields, "epoch")
        return Ack(_integer(fields, "offset"), epoch)
    if kind == "message":
        return _client_message(fields)
    if kind == "pong":
        return Pong()
    if kind == "ping":
        return Ping()
    raise ProtocolError(ErrorCode.UNKNOWN_TYPE, f"unknown type {kind[:64]!r}", _id_or_none(fields))


def _client_message(fields: dict[str, Any]) -> ClientMessage:
    id = _id_or_none(fields)
    if id is None:
        _bad("id must be 1 to 64 printable ASCII characters without spaces")
    request = fields.get("request", False)
    if not isinstance(request, bool):
        _bad("request must be true or false", id)
    return ClientMessage(id, _frame(fields, id), request)


def parse_server(
    text: str | bytes,
) -> Welcome | ServerMessage | Accepted | Refused | Closing | Ping | Pong | Unknown:
    """Return what a gateway's websocket frame means. Unknown fields are ignored.

    Raises:
        ProtocolError: The other end does not speak this protocol.
    """
    fields = _load(text)
    parse = _SERVER.get(fields["type"])
    return Unknown(fields["type"]) if parse is None else parse(fields)


def _server_message(fields: dict[str, Any]) -> ServerMessage:
    time, reply_to, error = (
        None if fields.get(name) is None else _string(fields, name)
        for name in ("time", "reply_to", "error")
    )
    if not isinstance(fields.get("data", ""), str):
        _bad("data must be a string")
    return ServerMessage(_integer(fields, "offset"), time, _frame(fields, None), reply_to, error)


def _welcome(fields: dict[str, Any]) -> Welcome:
    recovered, ping = fields.get("recovered"), fields.get("ping")
    if not isinstance(recovered, bool):
        _bad("recovered must be true or false")
    if isinstance(ping, bool) or not isinstance(ping, int | float) or not 0 < ping < MAX_PING:
        _bad("ping must be a number of seconds")
    reason = None if fields.get("reason") is None else _string(fields, "reason")
    return Welcome(
        connection=_string(fields, "connection"),
        service=_string(fields, "service"),
        user=_string(fields, "user"),
        device=_string(fields, "device"),
        epoch=_string(fields, "epoch"),
        offset=_integer(fields, "offset"),
        recovered=recovered,
        reason=reason,
        ping=float(ping),
        window=_integer(fields, "window"),
        max_message_size=_integer(fields, "max_message_size"),
    )


def _accepted(fields: dict[str, Any]) -> Accepted:
    return Accepted(_string(fields, "id"))


def _refused(fields: dict[str, Any]) -> Refused:
    id = None if fields.get("id") is None else _string(fields, "id")
    temporary = fields.get("temporary") is True
    return Refused(id, _string(fields, "code"), _string(fields, "message"), temporary)


def _closing(fields: dict[str, Any]) -> Closing:
    after = fields.get("reconnect_after")
    if isinstance(after, bool) or not isinstance(after, int | float) or not 0 <= after <= MAX_AFTER:
        _bad(f"reconnect_after must be a number of seconds from 0 to {MAX_AFTER}")
    return Closing(float(after))


_ServerFrame = Welcome | ServerMessage | Accepted | Refused | Closing | Ping | Pong

_SERVER: dict[str, Callable[[dict[str, Any]], _ServerFrame]] = {
    "message": _server_message,
    "ack": _accepted,
    "error": _refused,
    "welcome": _welcome,
    "closing": _closing,
    "ping": lambda fields: Ping(),
    "pong": lambda fields: Pong(),
}


def _bad(message: str, id: str | None = None) -> NoReturn:
    raise ProtocolError(ErrorCode.BAD_REQUEST, message, id)


_decode = json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse_constant).decode


def _load(text: str | bytes) -> dict[str, Any]:
    if not isinstance(text, str):
        raise _fatal(f"binary frames are not part of {SUBPROTOCOL}; send bytes as base64")
    try:
        fields = _decode(text)
    except NotStrict as exc:
        _bad(f"the frame is refused: {exc}")
    except (ValueError, RecursionError):
        # ValueError: no JSON, an integer of thousands of digits.
        _bad("the frame is not a JSON object, or too deep")
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        _bad('the frame is not a JSON object with a string "type"')
    return fields


def valid_id(id: object) -> bool:
    """Say whether *id* may name a client's message: it must fit into a NATS header."""
    return isinstance(id, str) and _ID.match(id) is not None


def _id_or_none(fields: dict[str, Any]) -> str | None:
    id = fields.get("id")
    return id if isinstance(id, str) and valid_id(id) else None


def _string(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        _bad(f"{name} must be a string")
    return value


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= MAX_OFFSET:
        _bad(f"{name} must be an integer from 0 to {MAX_OFFSET}")
    return value


def _frame(fields: dict[str, Any], id: str | None) -> Frame:
    """Return the payload: *data* (text, or any other JSON value as JSON) or *bytes*."""
    if ("data" in fields) == ("bytes" in fields):
        _bad("give either data or bytes", id)
    try:
        if "bytes" in fields:
            return Frame(_base64(fields["bytes"]), False)
        data = fields["data"]
        return Frame((data if isinstance(data, str) else _dumps(data)).encode(), True)
    except (ValueError, RecursionError):
        # ValueError: half a surrogate pair, a number like 1e999, no base64.
        _bad("data or bytes cannot be encoded", id)


def _base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return binascii.a2b_base64(value.encode("ascii"), strict_mode=True)


# -- heartbeat ---------------------------------------------------------------------------


class Beat(Enum):
    """What `Heartbeat.check` wants done."""

    NOTHING = 0
    PING = 1
    DEAD = 2


class Heartbeat:
    """Notices a peer that is gone: pings it, and wants any frame in return.

    The shell calls `heard` for each frame, and `check` at `deadline`.

    Args:
        interval: Seconds between pings.
        timeout: Seconds that the peer has to send anything after a ping.
        now: The clock's value; the clock must not jump.
    """

    __slots__ = ("_asked", "_heard", "_interval", "_timeout", "deadline")

    def __init__(self, interval: float, timeout: float, now: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._heard = False  # a frame came since the last ping
        self._asked = False  # a ping waits for its answer
        self.deadline = now + interval
        """When to call `check`."""

    def heard(self) -> None:
        """Note a sign of life; cheap, for each frame."""
        self._heard = True

    def check(self, now: float) -> Beat:
        """Return what to do now; moves `deadline`."""
        if now < self.deadline:
            return Beat.NOTHING
        late = now - self.deadline > self._timeout
        if self._asked and not self._heard and not late:
            return Beat.DEAD
        if self._asked and self._heard:
            self._asked = False
            self.deadline += max(self._interval - self._timeout, 0.0)
            if now < self.deadline:
                return Beat.NOTHING
        # A late check means that this process slept: the answer may wait unread, so ask again.
        self._asked, self._heard = True, False
        self.deadline = now + self._timeout
        return Beat.PING
