"""The scenarios of tests/vectors/server.json: what the gateway's end of a websocket decides.

A vector has a `name` and `steps`, and sometimes `limits` (the others are those at the top of the
file), `raw` (there is no subprotocol) and `opened`: false (there was no welcome yet). Each step has
one `in`, see the `do_` methods of `Runner`. `out` is everything that comes of it:

* `publishes`, `confirms`, `answers`, `closes`: the action; `closes` has the code that the client
  gets, and the reason and the cause for the log if there is one;
* `watches`, `unwatches`: the service and user, or the topic, that the client watches, or not any
  more; `token`: what it sent with a watch of a topic;
* `subscribes`, `unsubscribes`: the topic that the client reads, or not any more;
* `renews`: the new token;
* `writes`: the frame that is written;
* `code`: what a close means to this client.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.support import ROOT
from wsgateway import exceptions
from wsgateway.broker.messages import Stored
from wsgateway.broker.recovery import Start
from wsgateway.exceptions import MessageTooBig
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import (
    Action,
    Answer,
    Client,
    Close,
    Confirm,
    Endpoint,
    EndWatch,
    Publish,
    RawEndpoint,
    Renew,
    StartWatch,
    Subscribe,
    Unsubscribe,
)
from wsgateway.protocol.limits import Limits
from wsgateway.protocol.readership import Present
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.protocol.v1 import ErrorCode, Reason, encode_client_ack
from wsgateway.protocol.v1.endpoint import V1Endpoint

REASONS = {str(reason): reason for reason in Reason}
CODES = {str(code): code for code in ErrorCode}
FILE = json.loads((ROOT / "tests/vectors/server.json").read_text())


def data_of(frame: str | bytes) -> Any:
    """Return what a written frame is in the file."""
    if isinstance(frame, bytes):
        return {"bytes": base64.b64encode(frame).decode()}
    try:
        return json.loads(frame)
    except ValueError:
        return frame


def shown(target: Address) -> str | list[str]:
    """A topic as its name, a user as service and name."""
    return str(target) if isinstance(target, Topic) else [*target]


def target_of(fields: dict[str, Any]) -> Address:
    if "topic" in fields:
        return Topic.parse(fields["topic"])
    return Inbox(fields.get("service", "orders"), fields["user"])


class Runner:
    """Feeds an endpoint as a session does, without a socket; collects what it says."""

    def __init__(self, vector: dict[str, Any]) -> None:
        kind: type[Endpoint] = RawEndpoint if vector.get("raw") else V1Endpoint
        self.now = 1000.0
        limits = Limits(**{**FILE["limits"], **vector.get("limits", {})})
        self.endpoint = kind(limits, self.now)
        self.confirmed: dict[Topic | None, int] = {}
        self.out: dict[str, Any] = {}
        if vector.get("opened", True):
            self.do_welcome({"epoch": "e", "offset": 0})
            self.do_open(True)

    def step(self, event: dict[str, Any]) -> dict[str, Any]:
        """Do what a step says; return what came of it."""
        ((kind, value),) = event.items()
        self.out = {}
        getattr(self, f"do_{kind}")(value)
        return self.out

    def apply(self, action: Action | None) -> None:
        if isinstance(action, Publish):
            frame = action.frame
            payload = {"data": frame.data} if frame.text else data_of(frame.payload)
            id = {} if action.id is None else {"id": action.id}
            self.out["publishes"] = {
                **id,
                **payload,
                **({"request": True} if action.request else {}),
                **({"topic": str(action.topic)} if action.topic else {}),
            }
        elif isinstance(action, Confirm):
            topic = action.topic
            self.out["confirms"] = [str(topic), action.offset] if topic else action.offset
            if action.offset > self.confirmed.get(topic, 0):
                self.confirmed[topic] = action.offset
                self.endpoint.progressed()
        elif isinstance(action, Subscribe):
            given = {name: value for name, value in action._asdict().items() if value is not None}
            self.out["subscribes"] = {**given, "topic": str(action.topic)}
        elif isinstance(action, Unsubscribe):
            self.out["unsubscribes"] = str(action.topic)
            self.write(action.text)
        elif isinstance(action, StartWatch):
            self.out["watches"] = shown(action.target)
            if action.token is not None:
                self.out["token"] = action.token
        elif isinstance(action, EndWatch):
            self.out["unwatches"] = shown(action.target)
        elif isinstance(action, Renew):
            self.out["renews"] = action.token
        elif isinstance(action, Answer):
            assert "answers" not in self.out
            self.out["answers"] = json.loads(action.text)
        elif isinstance(action, Close):
            self.out["closes"] = {
                "code": self.endpoint.code(action.code),
                **({"reason": action.reason} if action.reason else {}),
                **({"cause": action.cause} if action.cause else {}),
            }

    def write(self, frame: str | bytes | None) -> None:
        if frame is not None:
            self.out["writes"] = data_of(frame)

    # -- from the client -----------------------------------------------------------------

    def do_frame(self, fields: dict[str, Any]) -> None:
        """A frame, as an object."""
        self.do_text(json.dumps(fields))

    def do_text(self, text: str) -> None:
        """A text frame."""
        self.apply(self.endpoint.receive(text, self.now))

    def do_binary(self, data: str) -> None:
        """A binary frame, in base64."""
        self.apply(self.endpoint.receive(base64.b64decode(data), self.now))

    def do_large(self, size: int) -> None:
        """A text frame of so many bytes."""
        self.do_text("x" * size)

    def do_acks(self, count: int) -> None:
        """So many acknowledgements that are news."""
        for offset in range(1, count + 1):
            self.do_text(encode_client_ack(offset, "e"))

    def do_hidden(self, count: int) -> None:
        """So many pings, which the server answers itself."""
        for _ in range(count):
            self.apply(self.endpoint.hidden_frame(self.now))

    # -- from the broker -----------------------------------------------------------------

    def do_stored(self, id: str | None) -> None:
        """The message is stored."""
        self.apply(self.endpoint.published(id, None))

    def do_refused(self, fields: dict[str, Any]) -> None:
        """It is not."""
        error: Exception = MessageTooBig(21, 20, "LIMIT")
        if fields["error"] != "MessageTooBig":
            known = getattr(exceptions, fields["error"], None) or ZeroDivisionError
            error = known("why")
        self.apply(self.endpoint.published(fields["id"], error))

    def do_message(self, fields: dict[str, Any]) -> None:
        """There is a message for the client."""
        is_text = "data" in fields
        payload = fields["data"].encode() if is_text else base64.b64decode(fields["bytes"])
        stored = Stored(
            fields["offset"],
            None,
            payload,
            "text" if is_text else "binary",
            fields["time"],
            fields.get("reply_to"),
            fields.get("error"),
        )
        stored.sender = Inbox(*fields["from"]) if "from" in fields else None
        topic = Topic.parse(fields["topic"]) if "topic" in fields else None
        self.write(self.endpoint.message(stored, topic))

    # -- from topics ---------------------------------------------------------------------

    def start_of(self, fields: dict[str, Any]) -> Start | None:
        if "epoch" not in fields:
            return None
        reason = fields.get("reason")
        return Start(fields["epoch"], fields["offset"], REASONS[reason] if reason else None)

    def do_subscribed(self, fields: dict[str, Any]) -> None:
        """The client may read a topic; without `epoch`, it is ephemeral."""
        topic, access = Topic.parse(fields["topic"]), fields.get("access", "read")
        self.write(self.endpoint.subscribed(topic, self.start_of(fields), fields["id"], access))

    def do_subscribed_again(self, fields: dict[str, Any]) -> None:
        """The stream of a topic that it reads has changed, or what it may do."""
        topic, start = Topic.parse(fields["topic"]), self.start_of(fields)
        self.write(self.endpoint.subscribed_again(topic, start, fields.get("access")))

    def do_unsubscribed(self, fields: dict[str, Any]) -> None:
        """The client may not read a topic, or not any more."""
        topic, code = Topic.parse(fields["topic"]), CODES[fields["code"]]
        self.write(self.endpoint.unsubscribed(topic, code, fields.get("reason"), fields.get("id")))

    # -- from presence -------------------------------------------------------------------

    def do_presence(self, fields: dict[str, Any]) -> None:
        """The state of somebody whom the client may watch."""
        inbox = Inbox(fields.get("service", "orders"), fields["user"])
        self.apply(self.endpoint.presence(inbox, fields["online"]))

    def do_readers(self, fields: dict[str, Any]) -> None:
        """Who reads a topic that the client may watch; `users` null: too many to name."""
        users = fields["users"]
        named = None if users is None else frozenset(Inbox(*each) for each in users)
        present = Present(named, fields.get("sockets", 0), fields.get("complete", True))
        self.apply(self.endpoint.presence(Topic.parse(fields["topic"]), present))

    def do_forbid(self, fields: dict[str, Any]) -> None:
        """The client may not watch somebody, or that cannot be found out."""
        error = ZeroDivisionError() if fields.get("error") else None
        self.apply(self.endpoint.refuse_watch(target_of(fields), error))

    # -- from the resolvers --------------------------------------------------------------

    def do_renewed(self, expires_in: float | None) -> None:
        """The new token was accepted."""
        self.apply(self.endpoint.renewed(expires_in))

    def do_unrenewed(self, fields: dict[str, Any]) -> None:
        """It was not."""
        reason, temporary = fields["reason"], fields["temporary"]
        self.apply(self.endpoint.refuse_renewal(reason, temporary=temporary))

    # -- from the session ----------------------------------------------------------------

    def do_fit_server(self, size: int) -> None:
        """The web server takes frames of this size."""
        self.endpoint.fit_server(size)

    def do_fit_broker(self, size: int) -> None:
        """The broker stores messages of this size."""
        self.endpoint.fit_broker(size)

    def do_welcome(self, fields: dict[str, Any]) -> None:
        """Delivery begins there, or something was trimmed."""
        start = self.start_of(fields)
        assert start is not None
        client = Client("c", "orders", "ann", "phone", fields.get("expires_in"))
        self.write(self.endpoint.welcome(client, start))

    def do_restart(self, fields: dict[str, Any]) -> None:
        """The stream was replaced, or lost its end."""
        close = self.endpoint.restart()
        self.do_welcome(fields)
        self.apply(close)

    def do_open(self, _: bool) -> None:
        """The welcome is written."""
        self.endpoint.open(self.now)

    def do_stop(self, _: bool) -> None:
        """The socket is being closed."""
        self.endpoint.stop()

    def do_close(self, name: str) -> None:
        """The gateway closes with this code."""
        code = CloseCode[name]
        self.out["code"] = self.endpoint.code(code)
        if self.endpoint.announces(code):
            self.write(self.endpoint.closing(1.5))

    # -- time ----------------------------------------------------------------------------

    def do_wait(self, seconds: float, *, busy: bool = False) -> None:
        """Time passes."""
        end = self.now + seconds
        while (deadline := self.endpoint.deadline) is not None and deadline <= end:
            self.now = deadline
            self.apply(self.endpoint.check(self.now, busy=busy))
        self.now = end

    def do_busy(self, seconds: float) -> None:
        """Time passes while a frame waits for the broker."""
        self.do_wait(seconds, busy=True)


@pytest.mark.parametrize("vector", FILE["vectors"], ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    runner = Runner(vector)
    for number, step in enumerate(vector["steps"]):
        assert runner.step(step["in"]) == step["out"], f"step {number}: {step['in']}"


def test_every_kind_of_step_is_used() -> None:
    used = {kind for vector in FILE["vectors"] for step in vector["steps"] for kind in step["in"]}
    assert used == {name.removeprefix("do_") for name in dir(Runner) if name.startswith("do_")}


@pytest.mark.parametrize("kind", [RawEndpoint, V1Endpoint])
@pytest.mark.parametrize("code", CloseCode)
def test_each_close_code_is_told_in_the_clients_words(
    kind: type[Endpoint], code: CloseCode
) -> None:
    endpoint = kind(Limits(**FILE["limits"]), 0.0)
    assert endpoint.code(code) == (code if kind is V1Endpoint else code.raw)
