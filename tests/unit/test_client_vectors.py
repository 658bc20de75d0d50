"""The shared scenarios of tests/vectors/client.json against the Python client's pure part.

``tests/js/vectors.test.mjs`` runs the same file against ``wsgateway.js``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support import ROOT
from wsgateway.client.errors import GatewayError
from wsgateway.client.events import (
    Answered,
    Began,
    Confirmed,
    Delivered,
    Ended,
    Event,
    Failed,
    ReadersSeen,
    Seen,
    TokenWanted,
    Unclaimed,
    Watched,
    Welcomed,
)
from wsgateway.client.inbox import Position
from wsgateway.client.readers import Readers
from wsgateway.client.session import ClientSession
from wsgateway.client.subscription import Subscription
from wsgateway.protocol.backoff import Backoff
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.v1 import ErrorCode, ProtocolError, Reason, ServerMessage

FILE = json.loads((ROOT / "tests/vectors/client.json").read_text())
SCHEMA = json.loads((ROOT / "wsgateway/static/wsgateway/protocol.schema.json").read_text())
VECTORS = FILE["vectors"]
BAD = FILE["not_the_protocol"]
CLOSE_ENOUGH = 1e-6  # of clock values


def full(frame: dict[str, Any]) -> dict[str, Any]:
    """Return a server frame with the fields that a welcome of the file leaves out."""
    return {**FILE["welcome"], **frame} if frame["type"] == "welcome" else frame


def _fields(position: Position) -> dict[str, Any]:
    return {name: value for name, value in position._asdict().items() if value is not None}


class Runner:
    """Feeds a session as `Transport` and `Client` do, without a socket; collects what it says."""

    def __init__(self, options: dict[str, Any]) -> None:
        options = {**FILE["options"], **options}
        position, tokens = options.pop("position", None), options.pop("tokens", [])
        self.tokens = iter(tokens)
        self.session = ClientSession(
            position=Position(**position) if position else None,
            backoff=Backoff(**options.pop("backoff"), random=lambda: 0),
            renewable=bool(tokens),
            **options,
        )
        self.now = 1000.0
        self.state = "idle"
        self.redial_at = math.inf
        self.token: str | None = None
        self.requests: set[str] = set()
        self.watches: dict[str, str] = {}  # id -> label
        self.topics: dict[str, Subscription] = {}
        self.topic_tokens: dict[str, Iterator[str]] = {}
        self.given: dict[str, Delivered] = {}  # by payload
        self.out: dict[str, Any] = {}
        self.told = self.position
        self.told_of_topics: dict[str, Any] = {}

    @property
    def position(self) -> dict[str, Any] | None:
        position = self.session.position
        return _fields(position) if position else None

    def step(self, event: dict[str, Any]) -> dict[str, Any]:
        """Do what a step says; return what happened."""
        ((kind, value),) = event.items()
        self.out = {}
        getattr(self, f"do_{kind}")(value)
        self.write()
        if self.position != self.told:
            self.out["position"] = self.told = self.position
        for name, subscription in self.topics.items():
            position = subscription.inbox.position
            told = _fields(position) if position else None
            if told != self.told_of_topics[name]:
                self.told_of_topics[name] = told
                self.out.setdefault("positions", {})[name] = told
        return self.out

    def add(self, name: str, value: object) -> None:
        self.out.setdefault(name, []).append(value)

    def become(self, state: str) -> None:
        self.state = self.out["state"] = state

    def result(self, id: str, result: object) -> None:
        self.out.setdefault("results", {})[id] = result

    # -- what happens --------------------------------------------------------------------

    def do_connect(self, _: object) -> None:
        self.redial_at = math.inf
        if self.session.stale:
            self.token = next(self.tokens, None)
            self.session.stale = False
        position = self.session.connecting()
        self.out["dial"] = {
            **({"token": self.token} if self.token else {}),
            **(_fields(position) if position else {}),
        }
        self.become("connecting")

    def do_frame(self, frame: dict[str, Any]) -> None:
        self.do_text(json.dumps(full(frame)))

    def do_binary(self, data: str) -> None:
        self.do_text(base64.b64decode(data))

    def do_text(self, text: str | bytes) -> None:
        was_open = self.session.is_open
        try:
            self.apply(self.session.receive(text, self.now))
        except ProtocolError:
            self.end("not the protocol", 4500)
            return
        except GatewayError as exc:
            self.end(str(exc), exc.close_code)
            return
        if self.session.is_open and not was_open:
            self.become("open")

    def do_lost(self, code: int) -> None:
        delay = self.session.lost(code, self.now)
        if delay is None:
            self.end("final", code)
            return
        self.redial_at = self.now + delay
        self.out["reconnects_in"] = delay
        self.become("waiting")

    def do_close(self, _: object) -> None:
        for ack in self.session.last_acks():
            self.add("sends", json.loads(ack))
        self.end("closed by the application", None, own=True)

    def end(self, reason: str, code: int | None, *, own: bool = False) -> None:
        self.session.lost(1000, self.now)
        events = self.session.end(reason, code)
        self.apply(
            event for event in events if not (own and isinstance(event, Ended | ReadersSeen))
        )
        self.become("closed")

    def do_send(self, message: dict[str, Any], *, request: bool = False) -> None:
        id = message["id"]
        data = message["data"] if "data" in message else base64.b64decode(message["bytes"])
        topic = message.get("topic")
        try:
            if topic and (error := self.topics[topic].error):
                raise error.about(id)
            if request:
                self.requests.add(id)
                self.session.sending.request(id, Frame.of(data), topic=topic)
            else:
                self.session.sending.send(id, Frame.of(data), topic=topic)
        except ValueError:
            self.result(id, "invalid")
        except GatewayError as exc:
            self.result(id, refusal(exc))

    def do_request(self, message: dict[str, Any]) -> None:
        self.do_send(message, request=True)

    def do_give_up(self, id: str) -> None:
        self.session.sending.give_up(id)
        self.session.sending.expect_no_reply(id)

    def do_watch(self, what: dict[str, str]) -> None:
        label = f"watch {what.get('topic') or what['user']}"
        try:
            if "topic" in what:
                id = self.session.watch_readers(self.topics[what["topic"]])
            else:
                id = self.session.watch(what.get("service"), what["user"])
        except GatewayError as exc:
            self.result(label, refusal(exc))
            return
        self.watches[id] = label
        is_known, answer = self.session.watches.known(id)
        if is_known:
            self.result(label, answered(answer))

    def do_unwatch(self, what: dict[str, str]) -> None:
        if "topic" in what:
            id = self.session.watches.id_of_readers(self.topics[what["topic"]])
        else:
            id = self.session.watches.id_of(what.get("service"), what["user"])
        if id is not None:
            self.apply(self.session.watches.remove(id))

    def do_topic(self, options: dict[str, Any]) -> None:
        options = dict(options)
        name, renewable = options.pop("topic"), "tokens" in options
        self.topic_tokens[name] = iter(options.pop("tokens", ()))
        if given := options.pop("position", None):
            options["position"] = Position(**given)
        subscription, events = self.session.subscriptions.add(name, **options, renewable=renewable)
        self.topics[name] = subscription
        position = subscription.inbox.position
        self.told_of_topics[name] = _fields(position) if position else None
        self.apply(events)

    def do_leave(self, name: str) -> None:
        error = GatewayError("ended", "closed", True)
        events = self.session.subscriptions.remove(self.topics[name], error)
        self.apply(event for event in events if not isinstance(event, Ended | ReadersSeen))

    def do_processed(self, payload: str) -> None:
        given = self.given[payload]
        about = (given.generation, given.message.offset, self.now)
        if given.subscription is None:
            self.session.processed(*about)
        else:
            self.session.subscriptions.processed(given.subscription, *about)

    def do_wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.next_deadline()) <= end + CLOSE_ENOUGH:
            self.now = max(self.now, due)
            self.pass_time()
        self.now = end

    def do_sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pass_time()

    def next_deadline(self) -> float:
        session = self.session
        return min(session.write_at, session.beat_at, session.renewal.at, self.redial_at)

    def pass_time(self) -> None:
        """Do what is due."""
        if self.redial_at <= self.now:
            self.do_connect(True)
        elif not self.session.alive(self.now):
            self.do_lost(1006)
        elif self.session.renewal.at <= self.now:
            self.token = next(self.tokens)
            self.session.refresh(self.token)
        self.write()

    # -- what comes of it ----------------------------------------------------------------

    def write(self) -> None:
        if self.state in ("connecting", "open"):
            while (text := self.session.next_frame(self.now)) is not None:
                self.add("sends", json.loads(text))

    def apply(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Delivered(message):
                    payload = fields(message.frame)
                    self.given[str(next(iter(payload.values())))] = event
                    self.add("delivers", {**about(message), **payload})
                case Began() | Ended() | ReadersSeen() | TokenWanted():
                    self.apply_to_topic(event)
                case Confirmed(id):
                    if id not in self.requests:
                        self.result(id, "stored")
                case Failed(id, error) | Answered(id, GatewayError() as error):
                    self.result(id, refusal(error))
                case Answered(id, reply):
                    assert not isinstance(reply, GatewayError)
                    self.result(id, fields(reply.frame, data="reply", bytes="reply_bytes"))
                case Unclaimed(GatewayError() as error):
                    told = {"id": error.id, "code": error.code, "temporary": error.temporary}
                    self.add("errors", told)
                case Unclaimed(reply):
                    assert not isinstance(reply, GatewayError)
                    self.add("replies", {"reply_to": reply.reply_to, **fields(reply.frame)})
                case Watched(id, GatewayError() as error):
                    self.result(self.watches[id], refusal(error))
                case Watched(id, answer):
                    self.result(self.watches[id], answered(answer))
                case Seen(presence):
                    self.add("presences", dataclasses.asdict(presence))
                case Welcomed(welcome):
                    told = {"recovered": welcome.recovered, "reason": welcome.reason}
                    self.add("welcomes", told)

    def apply_to_topic(self, event: Began | Ended | ReadersSeen | TokenWanted) -> None:
        topic = event.subscription.topic
        match event:
            case Began(_, frame):
                told = {name: getattr(frame, name) for name in ("access", "recovered", "reason")}
                self.add("subscribed", {"topic": topic, **told})
            case Ended(_, error):
                ended = {"topic": topic, "error": error.code, "temporary": error.temporary}
                self.add("ended", ended)
            case ReadersSeen(_, change, reason):
                self.add("readers", {"topic": topic, **answered(change)})
                if reason is not None:
                    refused = {"topic": topic, "error": reason.code, "temporary": reason.temporary}
                    self.add("unwatched", refused)
            case TokenWanted(subscription, None):
                token = next(self.topic_tokens[topic])
                self.session.subscriptions.authorize(subscription, token, self.now)
            case TokenWanted(_, str() as watch):
                self.session.watches.authorize(watch, next(self.topic_tokens[topic]))


def about(message: ServerMessage) -> dict[str, Any]:
    sender = message.sender and message.sender._asdict()
    told = {"topic": message.topic, "offset": message.offset or None, "from": sender}
    return {name: value for name, value in told.items() if value is not None}


def answered(answer: Any) -> Any:
    """Return the answer to a watch as the vectors have it."""
    if not isinstance(answer, Readers):
        return answer
    return {
        name: [user._asdict() for user in value] if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(answer).items()
    }


def fields(frame: Frame, *, data: str = "data", bytes: str = "bytes") -> dict[str, str]:
    if frame.text:
        return {data: frame.payload.decode()}
    return {bytes: base64.b64encode(frame.payload).decode()}


def refusal(error: GatewayError) -> dict[str, Any]:
    result: dict[str, Any] = {"error": error.code, "temporary": error.temporary}
    if error.close_code is not None:
        result["close_code"] = error.close_code
    return result


def opened(vector: dict[str, Any]) -> Runner:
    runner = Runner(vector.get("options", {}))
    if "opened" in vector:
        runner.step({"connect": True})
        runner.step({"frame": {"type": "welcome", **vector["opened"]}})
    return runner


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    runner = opened(vector)
    for number, step in enumerate(vector["steps"], 1):
        assert runner.step(step["in"]) == step["out"], f"step {number}: {step['in']}"


AFTERS: list[dict[str, Any]] = [{}, {"opened": {}}]  # instead of a welcome, and after one
ENDS = [
    *[({"text": text}, after) for text in BAD["texts"] for after in AFTERS],
    *[({"binary": data}, after) for data in BAD["binary"] for after in AFTERS],
    *[({"text": text}, AFTERS[0]) for text in BAD["instead_of_a_welcome"]],
]


@pytest.mark.parametrize(("event", "after"), ENDS, ids=str)
def test_what_is_not_the_protocol_ends_the_session(
    event: dict[str, Any], after: dict[str, Any]
) -> None:
    runner = opened(after)
    if not after:
        runner.step({"connect": True})
    assert runner.step(event) == {"state": "closed"}
    assert runner.step({"wait": 60}) == {}


# -- the file itself ---------------------------------------------------------------------


def validator(direction: str) -> Draft202012Validator:
    return Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{direction}"})


def frames(kind: str) -> list[dict[str, Any]]:
    steps = [step for vector in VECTORS for step in vector["steps"]]
    if kind == "sends":
        return [frame for step in steps for frame in step["out"].get("sends", ())]
    welcomes = [{"type": "welcome", **vector["opened"]} for vector in VECTORS if "opened" in vector]
    return welcomes + [step["in"]["frame"] for step in steps if "frame" in step["in"]]


def test_names_are_unique() -> None:
    names = [vector["name"] for vector in VECTORS]
    assert len(set(names)) == len(names)


def test_frames_are_frames_of_the_protocol() -> None:
    server, client = validator("server"), validator("client")
    for frame in frames("in"):
        server.validate(full(frame))
    for frame in frames("sends"):
        client.validate(frame)


def test_texts_that_are_not_frames_are_none_by_the_schema() -> None:
    server = validator("server")
    for text in BAD["texts"]:
        try:
            frame = json.loads(text)
            json.dumps(frame, ensure_ascii=False).encode()  # half a surrogate pair is not text
        except ValueError:
            continue
        assert not server.is_valid(frame), text


def test_every_type_and_every_reason_has_a_vector() -> None:
    definitions = SCHEMA["$defs"]
    types = {
        definitions[ref["$ref"].rpartition("/")[2]]["properties"]["type"]["const"]
        for ref in definitions["server"]["oneOf"]
    }
    assert {frame["type"] for frame in frames("in")} == types
    assert {frame.get("reason") for frame in frames("in")} >= set(Reason)
    temporary = {frame.get("code"): frame.get("temporary") for frame in frames("in")}
    for code in (ErrorCode.BAD_REQUEST, ErrorCode.QUEUE_FULL):
        assert temporary[code] is code.temporary
