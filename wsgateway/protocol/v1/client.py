"""``wsgateway.v1`` at the client's end: what a gateway's frame says, and the client's frames."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring as _quote
from typing import Any

from wsgateway.protocol.endpoint import Since
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.protocol.v1.fields import (
    MAX_OFFSET,
    bad,
    dumps,
    frame_of,
    integer,
    load,
    string,
)
from wsgateway.protocol.v1.messages import (
    MAX_AFTER,
    MAX_PING,
    Accepted,
    Closing,
    Ping,
    Pong,
    Presence,
    Readers,
    ReadersChanged,
    Refreshed,
    Refused,
    ServerMessage,
    Subscribed,
    TopicUnwatched,
    Unknown,
    Unsubscribed,
    Unwatched,
    Watching,
    Welcome,
)

REQUEST = '"request":true,'


def encode_client_message(
    id: str,
    frame: Frame,
    *,
    request: bool = False,
    trace: Mapping[str, str] | None = None,
    topic: str | None = None,
) -> str:
    """Return the frame with which a client publishes, to its service or to a topic."""
    head = f'{{"type":"message","id":{_quote(id)},{REQUEST if request else ""}'
    if topic is not None:
        head += f'"topic":{_quote(topic)},'
    if trace:
        head += "".join(f"{_quote(name)}:{_quote(value)}," for name, value in trace.items())
    if frame.text:
        return f'{head}"data":{_quote(frame.payload.decode())}}}'
    return f'{head}"bytes":"{b64encode(frame.payload).decode()}"}}'


def encode_client_ack(offset: int, epoch: str, topic: str | None = None) -> str:
    """Return the client's word that it has everything up to *offset* of *epoch*.

    Args:
        offset: Of the last message that it has processed.
        epoch: What its last welcome said; that of a topic, what its last `Subscribed` said.
        topic: Of which topic; None: of the inbox.
    """
    about = "" if topic is None else f'"topic":{_quote(topic)},'
    return f'{{"type":"ack",{about}"offset":{offset},"epoch":{_quote(epoch)}}}'


def encode_subscribe(
    id: str,
    topic: str,
    *,
    epoch: str | None = None,
    offset: int | None = None,
    since: Since = "new",
    token: str | None = None,
) -> str:
    """Return the frame that asks for a topic.

    Args:
        id: The client's name for the question.
        topic: Which.
        epoch: The client's own position, with *offset*: both or neither.
        offset: What it has processed.
        since: Where to begin without a position.
        token: What proves that it may; None: the gateway finds out.
    """
    fields: dict[str, object] = {"type": "subscribe", "id": id, "topic": topic}
    if epoch is not None:
        fields |= {"epoch": epoch, "offset": offset}
    elif since != "new":
        fields["since"] = since
    if token is not None:
        fields["token"] = token
    return dumps(fields)


def encode_unsubscribe(topic: str) -> str:
    """Return the frame that ends a subscription."""
    return dumps({"type": "unsubscribe", "topic": topic})


def encode_watch(id: str, service: str | None, user: str) -> str:
    """Return the frame that asks for a user's presence; *service* None: the client's own."""
    return dumps({"type": "watch", "id": id, **_target(service, user)})


def encode_unwatch(service: str | None, user: str) -> str:
    """Return the frame that ends a watch."""
    return dumps({"type": "unwatch", **_target(service, user)})


def encode_watch_topic(id: str, topic: str, token: str | None = None) -> str:
    """Return the frame that asks who reads a topic; *token* proves that the client may know."""
    fields = {"type": "watch", "id": id, "topic": topic}
    return dumps(fields if token is None else {**fields, "token": token})


def encode_unwatch_topic(topic: str) -> str:
    """Return the frame that ends the watch of a topic."""
    return dumps({"type": "unwatch", "topic": topic})


def encode_refresh(token: str) -> str:
    """Return the frame with which a client hands over a new token."""
    return dumps({"type": "refresh", "token": token})


def _target(service: str | None, user: str) -> dict[str, str]:
    return {"user": user} if service is None else {"service": service, "user": user}


def parse_server(text: str | bytes) -> _ServerFrame | Unknown:
    """Return what a gateway's websocket frame means. Unknown fields are ignored.

    Raises:
        ProtocolError: The other end does not speak this protocol.
    """
    fields = load(text)
    parse = _SERVER.get(fields["type"])
    return Unknown(fields["type"]) if parse is None else parse(fields)


def _server_message(fields: dict[str, Any]) -> ServerMessage:
    time, reply_to, error, topic = (
        _string_or_none(fields, name) for name in ("time", "reply_to", "error", "topic")
    )
    if not isinstance(fields.get("data", ""), str):
        bad("data must be a string")
    is_stored = topic is None or "offset" in fields
    offset = integer(fields, "offset") if is_stored else 0
    sender = None if topic is None else _sender(fields)
    return ServerMessage(offset, time, frame_of(fields, None), reply_to, error, topic, sender)


def _string_or_none(fields: dict[str, Any], name: str) -> str | None:
    return None if fields.get(name) is None else string(fields, name)


def _sender(fields: dict[str, Any]) -> Inbox | None:
    sender = fields.get("from")
    return None if sender is None else _user(sender, "from")


def _user(value: object, name: str) -> Inbox:
    if not isinstance(value, dict):
        bad(f"{name} must be an object")
    return Inbox(string(value, "service"), string(value, "user"))


def _boolean(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        bad(f"{name} must be true or false")
    return value


def _subscribed(fields: dict[str, Any]) -> Subscribed:
    topic, access = string(fields, "topic"), string(fields, "access")
    id = _string_or_none(fields, "id")
    if "durable" in fields and not _boolean(fields, "durable"):
        return Subscribed(topic, access, id, durable=False)
    return Subscribed(
        topic,
        access,
        id,
        epoch=string(fields, "epoch"),
        offset=integer(fields, "offset"),
        recovered=_boolean(fields, "recovered"),
        reason=_string_or_none(fields, "reason"),
    )


def _unsubscribed(fields: dict[str, Any]) -> Unsubscribed:
    id, code, reason = (_string_or_none(fields, name) for name in ("id", "code", "reason"))
    return Unsubscribed(string(fields, "topic"), id, code, reason, fields.get("temporary") is True)


def _welcome(fields: dict[str, Any]) -> Welcome:
    recovered, ping = _boolean(fields, "recovered"), fields.get("ping")
    if isinstance(ping, bool) or not isinstance(ping, int | float) or not 0 < ping < MAX_PING:
        bad("ping must be a number of seconds")
    reason, inbox = _string_or_none(fields, "reason"), _string_or_none(fields, "inbox")
    return Welcome(
        connection=string(fields, "connection"),
        service=string(fields, "service"),
        user=string(fields, "user"),
        device=string(fields, "device"),
        epoch=string(fields, "epoch"),
        offset=integer(fields, "offset"),
        recovered=recovered,
        reason=reason,
        inbox=inbox,
        ping=float(ping),
        window=integer(fields, "window"),
        max_message_size=integer(fields, "max_message_size"),
        expires_in=_expires_in(fields),
    )


def _refreshed(fields: dict[str, Any]) -> Refreshed:
    return Refreshed(_expires_in(fields))


def _expires_in(fields: dict[str, Any]) -> float | None:
    value = fields.get("expires_in")
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_OFFSET:
        bad("expires_in must be a number of seconds")
    return float(value)


def _accepted(fields: dict[str, Any]) -> Accepted:
    return Accepted(string(fields, "id"))


def _refused(fields: dict[str, Any]) -> Refused:
    temporary, id = fields.get("temporary") is True, _string_or_none(fields, "id")
    return Refused(id, string(fields, "code"), string(fields, "message"), temporary)


def _presence(fields: dict[str, Any]) -> Presence | Readers | ReadersChanged:
    if "topic" not in fields:
        return _presence_of_user(fields)
    if "users" in fields:
        return _readers(fields, None)
    topic, complete = string(fields, "topic"), _boolean(fields, "complete")
    return ReadersChanged(topic, _users(fields, "joined"), _users(fields, "left"), complete)


def _presence_of_user(fields: dict[str, Any]) -> Presence:
    return Presence(string(fields, "service"), string(fields, "user"), _online(fields))


def _watching(fields: dict[str, Any]) -> Watching | Readers:
    if "topic" in fields:
        return _readers(fields, string(fields, "id"))
    seen = _presence_of_user(fields)
    return Watching(seen.service, seen.user, seen.online, string(fields, "id"))


def _readers(fields: dict[str, Any], id: str | None) -> Readers:
    topic, complete = string(fields, "topic"), _boolean(fields, "complete")
    if fields.get("users") is None:
        return Readers(topic, None, integer(fields, "sockets"), complete, id)
    return Readers(topic, _users(fields, "users"), 0, complete, id)


def _users(fields: dict[str, Any], name: str) -> list[Inbox]:
    users = fields.get(name)
    if not isinstance(users, list):
        bad(f"{name} must be a list")
    return [_user(each, f"{name}, each of them,") for each in users]


def _online(fields: dict[str, Any]) -> bool | None:
    online = fields.get("online", "")
    if not (online is None or isinstance(online, bool)):
        bad("online must be true, false or null")
    return online


def _unwatched(fields: dict[str, Any]) -> Unwatched | TopicUnwatched:
    if "topic" in fields:
        return TopicUnwatched(*(string(fields, name) for name in ("topic", "code", "reason")))
    return Unwatched(*(string(fields, name) for name in ("service", "user", "code", "reason")))


def _closing(fields: dict[str, Any]) -> Closing:
    after = fields.get("reconnect_after")
    if isinstance(after, bool) or not isinstance(after, int | float) or not 0 <= after <= MAX_AFTER:
        bad(f"reconnect_after must be a number of seconds from 0 to {MAX_AFTER}")
    return Closing(float(after))


_ServerFrame = (
    Welcome
    | ServerMessage
    | Accepted
    | Refused
    | Subscribed
    | Unsubscribed
    | Watching
    | Presence
    | Readers
    | ReadersChanged
    | Unwatched
    | TopicUnwatched
    | Refreshed
    | Closing
    | Ping
    | Pong
)

_SERVER: dict[str, Callable[[dict[str, Any]], _ServerFrame]] = {
    "message": _server_message,
    "ack": _accepted,
    "error": _refused,
    "welcome": _welcome,
    "subscribed": _subscribed,
    "unsubscribed": _unsubscribed,
    "watching": _watching,
    "presence": _presence,
    "unwatched": _unwatched,
    "refreshed": _refreshed,
    "closing": _closing,
    "ping": lambda fields: Ping(),
    "pong": lambda fields: Pong(),
}
