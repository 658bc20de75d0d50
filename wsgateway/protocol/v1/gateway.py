"""``wsgateway.v1`` at the gateway's end: what a client's frame says, and the frames for clients."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import lru_cache
from json.encoder import encode_basestring as _quote
from typing import Any
from urllib.parse import parse_qsl

from wsgateway.exceptions import NameRefused
from wsgateway.protocol.endpoint import Access, Since, Start, Subscribe
from wsgateway.protocol.subjects import Inbox, Topic, encode_token
from wsgateway.protocol.subprotocols import RAW_SUBPROTOCOL
from wsgateway.protocol.v1.fields import (
    MAX_OFFSET,
    SUBPROTOCOL,
    bad,
    dumps,
    fatal,
    frame_of,
    integer,
    load,
    string,
    trace_of,
)
from wsgateway.protocol.v1.messages import (
    Ack,
    ClientMessage,
    ErrorCode,
    Ping,
    Pong,
    ProtocolError,
    Refresh,
    Resume,
    UnsubscribeFrom,
    Unwatch,
    UnwatchTopic,
    Watch,
    WatchTopic,
    valid_id,
)

SUBPROTOCOLS = (SUBPROTOCOL, RAW_SUBPROTOCOL)
"""What a gateway selects, the best first."""
MAX_EPOCH = 128
MAX_QUERY_FIELDS = 32
MAX_SINCE = 1000
"""How many of a topic's newest messages a client may ask for when it subscribes."""
MAX_TOKEN = 16_384
"""Characters of the longest token that a client may send."""
MAX_TOPIC = 511
"""Characters of the longest topic: two names and a dot."""
GROWTH = 6
"""How many times larger than a message the text in its frame can be: ``\\u0000``."""
OVERHEAD = 4096
"""Bytes of a frame that are not its message, at most."""

_TOKEN = re.compile(rf"[!-~]{{1,{MAX_TOKEN}}}\Z")
_DIGITS = re.compile(r"[0-9]{1,16}\Z")
_PLAIN_ACK = re.compile(
    r'\{"type":"ack",(?:"topic":"([ !#-\[\]-~]{1,511})",)?'
    r'"offset":(0|[1-9][0-9]{0,14})(?:,"epoch":"([!#-\[\]-~]{1,128})")?\}\Z'
)
"""As both of our clients write it: most of what a gateway gets, so it is not parsed as JSON."""


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
        raise fatal("the query string cannot be read") from exc
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in ("device", "epoch", "offset", "inbox"):
            if name in fields:
                raise fatal(f"{name} is given twice")
            fields[name] = value
    epoch, offset = fields.get("epoch"), fields.get("offset")
    if (epoch is None) != (offset is None):
        raise fatal("epoch and offset belong together; give both or neither")
    if epoch is not None and not 0 < len(epoch) <= MAX_EPOCH:
        raise fatal(f"epoch must have 1 to {MAX_EPOCH} characters")
    if offset is None:
        return Resume(fields.get("device") or None)
    if not _DIGITS.match(offset) or int(offset) > MAX_OFFSET:
        raise fatal(f"offset must be an integer from 0 to {MAX_OFFSET}")
    return Resume(fields.get("device") or None, epoch, int(offset), fields.get("inbox") or None)


def largest_frame(size: int) -> int:
    """Return the bytes of a frame around a message of *size* bytes, however it is encoded."""
    return GROWTH * size + OVERHEAD


def largest_message(size: int) -> int:
    """Return the bytes of a message that fits a frame of *size* bytes, however it is encoded."""
    return max(0, (size - OVERHEAD) // GROWTH)


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


def encode_topic_message(
    topic: str, offset: int, time: str, payload: bytes, text: bool, sender: Inbox | None = None
) -> str:
    """Return the frame for a topic's message; see `encode_message`.

    Args:
        topic: Which, as text.
        offset: Its offset; 0 if the topic is ephemeral.
        time: RFC 3339 text; empty if not known.
        payload: The message; UTF-8 if *text*.
        text: Whether it is a text frame.
        sender: Who wrote it; None if that is not known.
    """
    head = f'{{"type":"message","topic":{_quote(topic)},'
    if offset:
        head += f'"offset":{offset},'
    head += f'"time":{_quote(time) if time else "null"},'
    if sender is not None:
        head += f'"from":{dumps(sender._asdict())},'
    if text:
        return f'{head}"data":{_quote(payload.decode())}}}'
    return f'{head}"bytes":"{b64encode(payload).decode()}"}}'


def encode_subscribed(
    topic: str, access: Access, start: Start | None, epoch: str = "", id: str | None = None
) -> str:
    """Return the answer to a subscribe, or the news that something has changed.

    Args:
        topic: Which, as text.
        access: What the client may do.
        start: Where delivery begins; None: the topic is ephemeral.
        epoch: What the client calls the epoch of its offsets, see `name_epoch`.
        id: Of the question; None: nobody has asked.
    """
    fields: dict[str, object] = {"type": "subscribed"}
    if id is not None:
        fields["id"] = id
    fields["topic"] = topic
    if start is None:
        fields["durable"] = False
    else:
        fields |= {"epoch": epoch, "offset": start.offset, "recovered": start.reason is None}
        if start.reason is not None:
            fields["reason"] = str(start.reason)
    return dumps({**fields, "access": access})


def encode_unsubscribed(
    topic: str, code: ErrorCode | None = None, reason: str | None = None, id: str | None = None
) -> str:
    """Return the news that a subscription was refused, or has ended.

    Args:
        topic: Which, as text.
        code: Why; None: the client has asked for it.
        reason: The same for the client's developer; None: what *code* means.
        id: Of the question that is refused; None: it has ended.
    """
    fields: dict[str, object] = {"type": "unsubscribed"}
    if id is not None:
        fields["id"] = id
    fields["topic"] = topic
    if code is not None:
        fields |= {
            "code": code.value,
            "reason": code.meaning if reason is None else reason,
            "temporary": code.temporary,
        }
    return dumps(fields)


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
    inbox: str | None = None,
    reason: str | None = None,
    expires_in: float | None = None,
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
    if inbox is not None:
        fields["inbox"] = inbox
    if reason is not None:
        fields["reason"] = str(reason)
    fields |= {"ping": ping, "window": window, "max_message_size": max_message_size}
    return dumps(fields | _end(expires_in))


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
    return dumps(
        {"type": "error", "id": id, "code": code.value, "message": message, "temporary": may_retry}
    )


def encode_watching(id: str, inbox: Inbox, online: bool | None) -> str:
    """Return the answer to a watch: the present state."""
    return dumps({"type": "watching", "id": id, **inbox._asdict(), "online": online})


def encode_presence(inbox: Inbox, online: bool | None) -> str:
    """Return the news that a watched user came or went; *online* None: not known now."""
    return dumps({"type": "presence", **inbox._asdict(), "online": online})


def encode_unwatched(inbox: Inbox, code: ErrorCode, reason: str) -> str:
    """Return the news that a watch has ended."""
    return dumps({"type": "unwatched", **inbox._asdict(), "code": code.value, "reason": reason})


def encode_refreshed(expires_in: float | None) -> str:
    """Return the answer to a refresh, see `Refreshed`."""
    return dumps({"type": "refreshed"} | _end(expires_in))


def _end(expires_in: float | None) -> dict[str, object]:
    return {} if expires_in is None else {"expires_in": round(max(0.0, expires_in), 3)}


def encode_closing(reconnect_after: float) -> str:
    """Return the announcement of a close, see `Closing`."""
    return f'{{"type":"closing","reconnect_after":{reconnect_after:.3f}}}'


# -- parsing -----------------------------------------------------------------------------


ClientFrame = (
    ClientMessage
    | Ack
    | Subscribe
    | UnsubscribeFrom
    | Watch
    | WatchTopic
    | Unwatch
    | UnwatchTopic
    | Refresh
    | Ping
    | Pong
)


def parse_client(text: str | bytes) -> ClientFrame:
    """Return what a client's websocket frame means. Unknown fields are ignored.

    Raises:
        ProtocolError: Fatal for a binary frame only; else answer it and go on.
    """
    plain = _PLAIN_ACK.match(text) if isinstance(text, str) else None
    if plain is not None:
        if plain[1] is None:
            return Ack(int(plain[2]), plain[3])
        if plain[3] is not None:
            return Ack(int(plain[2]), plain[3], topic=_parse_topic(plain[1], None))
    fields = load(text)
    kind = fields["type"]
    if kind in _PARSERS:
        return _PARSERS[kind](fields)
    raise ProtocolError(ErrorCode.UNKNOWN_TYPE, f"unknown type {kind[:64]!r}", _id_or_none(fields))


def _ack(fields: dict[str, Any]) -> Ack:
    epoch = None if fields.get("epoch") is None else string(fields, "epoch")
    topic = _topic_or_none(fields, None)
    if topic is not None and epoch is None:
        bad("an ack with a topic needs the epoch that its offset belongs to")
    return Ack(integer(fields, "offset"), epoch, topic=topic)


def _client_message(fields: dict[str, Any]) -> ClientMessage:
    id = _id(fields)
    request = fields.get("request", False)
    if not isinstance(request, bool):
        bad("request must be true or false", id)
    has_trace = "traceparent" in fields or "tracestate" in fields
    trace = trace_of(fields, id) if has_trace else None
    topic = _topic_or_none(fields, id) if "topic" in fields else None
    return ClientMessage(id, frame_of(fields, id), request, trace, topic)


def _subscribe(fields: dict[str, Any]) -> Subscribe:
    id = _id(fields)
    topic = _topic(fields, id)
    epoch, token = (_text_or_none(fields, *field, id) for field in LIMITED)
    offset = None if fields.get("offset") is None else integer(fields, "offset", id)
    if (epoch is None) != (offset is None):
        bad("epoch and offset belong together; give both or neither", id)
    return Subscribe(topic, id, epoch, offset, _since(fields, id), token)


LIMITED = (("epoch", MAX_EPOCH), ("token", MAX_TOKEN))


def _text_or_none(fields: dict[str, Any], name: str, limit: int, id: str) -> str | None:
    value = fields.get(name)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= limit):
        bad(f"{name} must be a string of 1 to {limit} characters", id)
    return value


def _since(fields: dict[str, Any], id: str) -> Since:
    since = fields.get("since")
    if since is None or since == "new":
        return "new"
    if since == "all":
        return "all"
    if type(since) is int and 1 <= since <= MAX_SINCE:
        return since
    bad(f'since must be "new", "all" or an integer from 1 to {MAX_SINCE}', id)


def _unsubscribe(fields: dict[str, Any]) -> UnsubscribeFrom:
    return UnsubscribeFrom(_topic(fields, _id_or_none(fields)))


def _topic_or_none(fields: dict[str, Any], id: str | None) -> Topic | None:
    return None if fields.get("topic") is None else _topic(fields, id)


def _topic(fields: dict[str, Any], id: str | None) -> Topic:
    topic = fields.get("topic")
    if not isinstance(topic, str) or len(topic) > MAX_TOPIC:
        bad(f"topic must be a string of at most {MAX_TOPIC} characters", id)
    return _parse_topic(topic, id)


def _parse_topic(text: str, id: str | None) -> Topic:
    try:
        return _topic_of(text)
    except NameRefused as exc:
        bad(f"topic cannot be used: {exc}", id)


# Clients make these texts up, so the cache is small: an entry takes up to 4 KB
_topic_of = lru_cache(maxsize=4096)(Topic.parse)


def _watch(fields: dict[str, Any]) -> Watch | WatchTopic:
    id = _id(fields)
    if _is_of_topic(fields):
        return WatchTopic(id, _topic(fields, id), _text_or_none(fields, "token", MAX_TOKEN, id))
    return Watch(id, *_target(fields, id))


def _unwatch(fields: dict[str, Any]) -> Unwatch | UnwatchTopic:
    id = _id_or_none(fields)
    if _is_of_topic(fields):
        return UnwatchTopic(_topic(fields, id))
    return Unwatch(*_target(fields, id))


def _is_of_topic(fields: dict[str, Any]) -> bool:
    """Say whether a watch is of a topic; with a user, it is of the user, as it always was."""
    return "user" not in fields and fields.get("topic") is not None


def _refresh(fields: dict[str, Any]) -> Refresh:
    token = fields.get("token")
    if not isinstance(token, str) or not _TOKEN.match(token):
        text = f"token must be 1 to {MAX_TOKEN} printable ASCII characters without spaces"
        raise ProtocolError(ErrorCode.UNAUTHORIZED, text)
    return Refresh(token)


def _target(fields: dict[str, Any], id: str | None) -> tuple[str | None, str]:
    """Return the service, None for the client's own, and the user that a frame names."""
    service = fields.get("service")
    return None if service is None else _name(fields, "service", id), _name(fields, "user", id)


def _name(fields: dict[str, Any], field: str, id: str | None) -> str:
    name = fields.get(field)
    if not isinstance(name, str):
        bad(f"{field} must be a string", id)
    try:
        encode_token(name)
    except NameRefused as exc:
        bad(f"{field} cannot be used: {exc}", id)
    return name


def _id(fields: dict[str, Any]) -> str:
    id = fields.get("id")
    if not isinstance(id, str) or not valid_id(id):
        bad("id must be 1 to 64 printable ASCII characters without spaces")
    return id


def _id_or_none(fields: dict[str, Any]) -> str | None:
    id = fields.get("id")
    return id if isinstance(id, str) and valid_id(id) else None


_PARSERS: dict[str, Callable[[dict[str, Any]], ClientFrame]] = {
    "ack": _ack,
    "message": _client_message,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "watch": _watch,
    "unwatch": _unwatch,
    "refresh": _refresh,
    "pong": lambda fields: Pong(),
    "ping": lambda fields: Ping(),
}
