"""Server-sent events at the gateway's end: what each message and each change looks like. Pure.

A message is one event. Its name says where it comes from: ``message`` for the inbox, the topic's
name for a topic. See ``docs/reference/sse.md``. Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl

from wsgateway.exceptions import NameRefused
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import (
    Access,
    Action,
    Answer,
    Client,
    Close,
    Endpoint,
    Message,
    Since,
    Start,
    State,
)
from wsgateway.protocol.event_ids import At, Positions, mark, parse_id
from wsgateway.protocol.limits import Limits
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.protocol.v1 import (
    MAX_SINCE,
    ErrorCode,
    ProtocolError,
    Reason,
    encode_message,
    encode_topic_message,
)

__all__ = [
    "MAX_TOPICS",
    "SSE",
    "Request",
    "SseEndpoint",
    "encode_closed",
    "encode_problem",
    "encode_retry",
    "parse_request",
    "status_of",
]

SSE = "sse"
"""What metrics and events call it."""
HEARTBEAT = ":\n\n"
"""A comment, which readers ignore."""
MAX_TOPICS = 32
"""Topics of one response: each id holds a position in each of them."""
FOREVER = 2**31 - 1
"""Milliseconds, as many as browsers take."""
MAX_FIELDS = 100
"""Parameters of a query."""

STATUSES = {
    CloseCode.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    CloseCode.NOT_AUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    CloseCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    CloseCode.DISCONNECTED_BY_OPERATOR: HTTPStatus.FORBIDDEN,
    CloseCode.UNKNOWN_PATH: HTTPStatus.NOT_FOUND,
    CloseCode.TOO_MANY_CONNECTIONS: HTTPStatus.TOO_MANY_REQUESTS,
    CloseCode.INTERNAL_ERROR: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""What a request is refused with; every other code means: try again later."""

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_DIGITS = re.compile(r"[1-9][0-9]{0,3}\Z")

_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Request(NamedTuple):
    """What a reader asks for.

    Attributes:
        topics: What it reads besides its inbox.
        since: Where it begins where it has no position.
        positions: Where it was, by `event_ids.mark`; None: it sent no id.
        as_json: Whether it wants each message as a frame of ``wsgateway.v1``.
        tokens: What its page was given, to prove that it may read topics.
    """

    topics: Sequence[Topic] = ()
    since: Since = "new"
    positions: Mapping[str, At] | None = None
    as_json: bool = False
    tokens: Sequence[str] = ()


def parse_request(query_string: bytes, last_event_ids: Sequence[bytes] = ()) -> Request:
    """Return what a reader asks for.

    Args:
        query_string: Of its URL.
        last_event_ids: The values of its ``Last-Event-ID`` headers. They win over the query, which
            stays the same when a browser reconnects by itself.

    Raises:
        ProtocolError: A parameter or the header is malformed, or given twice.
    """
    try:
        text = query_string.decode("ascii")
        pairs = parse_qsl(text, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as exc:
        text = f"the query string cannot be read, or has more than {MAX_FIELDS} parameters"
        raise _bad(text) from exc
    fields = {"since": "new", "format": "text", "last_event_id": ""}
    topics: dict[Topic, None] = {}
    tokens = []
    seen = set()
    for name, value in pairs:
        if name == "topic":
            topics[_topic(value)] = None
        elif name == "topic_token":
            tokens.append(value)
        elif name in fields:
            if name in seen:
                raise _bad(f"{name} is given twice")
            seen.add(name)
            fields[name] = value
    if len(topics) > MAX_TOPICS:
        raise _bad(f"more than {MAX_TOPICS} topics in one request; open another one for the others")
    if len(tokens) > len(topics):
        raise _bad("more topic_token than topic; send one for each topic that needs it")
    if fields["format"] not in ("text", "json"):
        raise _bad('format must be "text" or "json"')
    ids = [value.decode("latin-1") for value in last_event_ids if value]
    positions = _positions([*ids, fields["last_event_id"]][0])
    is_json = fields["format"] == "json"
    return Request(list(topics), _since(fields["since"]), positions, is_json, tokens)


def _topic(text: str) -> Topic:
    if _LINE_BREAK.search(text):
        raise _bad("a topic with a line break in its name cannot be read as server-sent events")
    try:
        return Topic.parse(text)
    except NameRefused as exc:
        raise _bad(str(exc)) from exc


def _since(text: str) -> Since:
    if text == "new":
        return "new"
    if text == "all":
        return "all"
    if _DIGITS.match(text) and int(text) <= MAX_SINCE:
        return int(text)
    raise _bad(f'since must be "new", "all" or an integer from 1 to {MAX_SINCE}')


def _positions(text: str) -> Mapping[str, At] | None:
    if not text:
        return None
    try:
        return parse_id(text)
    except ValueError as exc:
        raise _bad(f"the last event's id is {exc}; leave it out to begin as `since` says") from exc


def _bad(text: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_REQUEST, text, fatal=True)


class SseEndpoint(Endpoint):
    """A reader of server-sent events. It sends nothing, and keeps its position itself."""

    __slots__ = ("_inbox", "_next_beat", "_positions", "_untold", "as_json", "claimed")

    subprotocol = SSE
    resumes = True
    moves_cursor = False

    def __init__(self, limits: Limits, now: float) -> None:
        super().__init__(limits, now)
        self.as_json = False
        """See `Request`."""
        self.claimed: Mapping[str, At] = {}
        """Where the reader says that it was, by `event_ids.mark`."""
        self._inbox: Inbox | None = None  # set by `welcome`
        self._positions = Positions()
        self._untold: dict[Topic, At] = {}  # where topics begin whose `gap` is not written yet
        self._next_beat = now + limits.ping_interval

    def receive(self, frame: str | bytes, now: float) -> Action | None:
        """Do nothing: a reader cannot send."""
        return None

    def published(self, id: str | None, error: BaseException | None) -> None:
        """Do nothing, either."""

    # -- where it begins -----------------------------------------------------------------

    def welcome(self, client: Client, start: Start) -> str:
        """See `Endpoint.welcome`."""
        self._inbox = Inbox(client.service, client.user)
        return self._tell(self._inbox, start)

    def subscribed(self, topic: Topic, start: Start | None, id: str, access: Access) -> str:
        """See `Endpoint.subscribed`.

        It is written after the welcome, whose id holds all positions, so that a reader that has
        only that one misses nothing. Where the reader is to learn of a gap, the id keeps its old
        position until it has: otherwise a connection that ends before would hide the gap.
        """
        claim = self.claimed.get(mark(topic))
        event = self._begin(topic, start)
        if start is not None and start.reason not in (None, Reason.NEW) and claim is not None:
            self._untold[topic] = At(start.epoch, start.offset)
            self._positions.begin(topic, claim)
        return event

    def begins(self, topic: Topic, frame: str) -> str:
        """See `Endpoint.begins`."""
        at = self._untold.pop(topic, None)
        if at is None:
            return frame
        self._positions.begin(topic, at)
        return f"id: {self._positions.id}\n{frame}"

    def subscribed_again(
        self, topic: Topic, start: Start | None, access: Access | None = None
    ) -> str | None:
        """See `Endpoint.subscribed_again`; a right to write means nothing to a reader."""
        return None if start is None or start.reason is None else self._tell(topic, start)

    def _tell(self, address: Address, start: Start) -> str:
        event = self._begin(address, start)
        return f"id: {self._positions.id}\n{event}"

    def _begin(self, address: Address, start: Start | None) -> str:
        fields: dict[str, object] = {"topic": str(address)} if isinstance(address, Topic) else {}
        if start is None:
            return _event("welcome", {**fields, "durable": False})
        known, at = self._positions.get(address), At(start.epoch, start.offset)
        if start.reason == Reason.TRIMMED and known is not None and known.epoch == at.epoch:
            at = max(known, at)  # the reader stays where it is
        self._positions.begin(address, at)
        fields |= at._asdict()
        if start.reason is None:
            return _event("recovered", fields)
        fields["reason"] = str(start.reason)
        return _event("welcome" if start.reason == Reason.NEW else "gap", fields)

    # -- messages ------------------------------------------------------------------------

    def message(self, stored: Message, topic: Topic | None = None) -> str | None:
        """See `Endpoint.message`; no answers to requests, which a reader cannot have made.

        A topic's is encoded once for all readers, but for the id.
        """
        if stored.reply_to is not None:
            if self._inbox is not None and stored.offset:
                self._positions.move(self._inbox, stored.offset)  # the next event's id says so
            return None
        if topic is None or self.as_json:
            event = self._encode(stored, topic)
        else:
            if stored.event is None:
                stored.event = self._encode(stored, topic)
            event = stored.event
        address = topic or self._inbox
        if not stored.offset or address is None:  # of an ephemeral topic
            return event
        self._positions.move(address, stored.offset)
        return f"id: {self._positions.id}\n{event}"

    def _encode(self, stored: Message, topic: Topic | None) -> str:
        payload, text = stored.frame
        if self.as_json and topic is None:
            return f"data: {encode_message(stored.offset, stored.time, payload, text)}\n\n"
        if self.as_json:
            head = str(topic), stored.offset, stored.time
            return f"data: {encode_topic_message(*head, payload, text, stored.sender)}\n\n"
        name = "" if topic is None else f"event: {topic}\n"
        if text:
            return f"{name}{_data(payload.decode())}\n"
        name = "binary" if topic is None else f"binary:{topic}"
        return f"event: {name}\ndata: {b64encode(payload).decode()}\n\n"

    # -- its end -------------------------------------------------------------------------

    def lost(self, topic: Topic, code: ErrorCode) -> Close:
        """See `Endpoint.lost`: a reader cannot take the topic out of its URL, so it comes again."""
        if code is ErrorCode.TOO_SLOW:
            return Close(CloseCode.TOO_SLOW)
        return Close(CloseCode.FORBIDDEN, "the right to read a topic has ended")

    def announces(self, code: CloseCode) -> bool:
        """See `Endpoint.announces`."""
        return code in (CloseCode.SHUTTING_DOWN, CloseCode.CREDENTIALS_CHANGED)

    def closing(self, reconnect_after: float) -> str:
        """See `Endpoint.closing`."""
        return encode_retry(reconnect_after)

    # -- heartbeat -----------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """See `Endpoint.deadline`."""
        return None if self.state is State.CLOSED else self._next_beat

    def check(self, now: float, *, busy: bool) -> Answer | None:
        """See `Endpoint.check`: say something, so that nobody between takes the reader for gone."""
        if self.state is State.CLOSED or now < self._next_beat:
            return None
        self._next_beat = now + self.limits.ping_interval
        return Answer(HEARTBEAT)


def _event(name: str, fields: Mapping[str, object]) -> str:
    return f"event: {name}\ndata: {_dumps(fields)}\n\n"


def _data(text: str) -> str:
    """Return the lines that hold *text*. Each kind of line break becomes a line of its own."""
    if "\n" not in text and "\r" not in text:
        return f"data: {text}\n"
    return "".join(f"data: {line}\n" for line in _LINE_BREAK.split(text))


def encode_retry(seconds: float) -> str:
    """Return what tells a browser after how many *seconds* to reconnect."""
    return f"retry: {max(1, round(seconds * 1000))}\n\n"


def encode_closed(code: int, reason: str) -> str:
    """Return the event before the end of a response.

    A browser comes back by itself, so one that is to stay away is told to wait for weeks.
    """
    stays = any(each == code and not each.reconnect for each in CloseCode)
    wait = f"retry: {FOREVER}\n" if stays else ""
    return wait + _event("closed", {"code": code, "reason": reason})


def status_of(code: CloseCode) -> HTTPStatus:
    """Return the status of a request that is refused with *code*."""
    return STATUSES.get(code, HTTPStatus.SERVICE_UNAVAILABLE)


def encode_problem(status: HTTPStatus, reason: str, code: int | None = None) -> bytes:
    """Return the document that says why a request is refused. Source: RFC 9457."""
    fields = {"type": "about:blank", "title": status.phrase, "status": int(status)}
    fields["detail"] = reason
    if code is not None:
        fields["code"] = code
    return _dumps(fields).encode()
