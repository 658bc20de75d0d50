"""Topics in wsgateway.v1: the frames, and what the gateway's end makes of them in any order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.test_protocol import CLIENT, IDS, JSON, OFFSETS, SERVER, TEXT
from wsgateway.broker.messages import Stored
from wsgateway.broker.recovery import Start
from wsgateway.exceptions import NameRefused
from wsgateway.protocol import v1 as protocol
from wsgateway.protocol.endpoint import (
    Access,
    Answer,
    Client,
    Confirm,
    Publish,
    Since,
    Subscribe,
    Unsubscribe,
)
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.limits import Limits
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1 import (
    Ack,
    ClientMessage,
    ErrorCode,
    ProtocolError,
    Reason,
    ServerMessage,
    Subscribed,
    Unsubscribed,
    UnsubscribeFrom,
)
from wsgateway.protocol.v1.endpoint import V1Endpoint

LIMITS = Limits(1000, 0, 1, 8, 25, 10, subscriptions=2)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
TOPICS = st.builds(Topic, NAMES.filter(lambda name: "." not in name), NAMES)
EPOCHS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
SINCE: st.SearchStrategy[Any] = st.sampled_from(("new", "all")) | st.integers(1, 1000)
START = Start("e", 7)


def endpoint() -> V1Endpoint:
    made = V1Endpoint(LIMITS, 0.0)
    made.welcome(Client("c", "orders", "ann", "phone"), Start("e", 0))
    made.open(0.0)
    return made


# -- frames ------------------------------------------------------------------------------


@given(IDS, TOPICS, st.none() | st.tuples(EPOCHS, OFFSETS), SINCE, st.none() | EPOCHS)
def test_subscribe_round_trip(
    id: str, topic: Topic, position: tuple[str, int] | None, since: Since, token: str | None
) -> None:
    epoch, offset = position or (None, None)
    text = protocol.encode_subscribe(
        id, str(topic), epoch=epoch, offset=offset, since=since, token=token
    )
    beginning: Since = since if position is None else "new"
    assert protocol.parse_client(text) == Subscribe(topic, id, epoch, offset, beginning, token)
    CLIENT.validate(json.loads(text))


@given(TOPICS, IDS, OFFSETS, EPOCHS, TEXT.map(Frame.of) | st.binary().map(Frame.of))
def test_what_a_client_says_of_a_topic_round_trip(
    topic: Topic, id: str, offset: int, epoch: str, frame: Frame
) -> None:
    for text, parsed in (
        (protocol.encode_unsubscribe(str(topic)), UnsubscribeFrom(topic)),
        (protocol.encode_client_ack(offset, epoch, str(topic)), Ack(offset, epoch, topic=topic)),
        (
            protocol.encode_client_message(id, frame, topic=str(topic)),
            ClientMessage(id, frame, topic=topic),
        ),
    ):
        assert protocol.parse_client(text) == parsed
        CLIENT.validate(json.loads(text))


@given(TOPICS, OFFSETS, TEXT, TEXT.map(Frame.of) | st.binary().map(Frame.of), NAMES | st.none())
def test_topic_message_round_trip(
    topic: Topic, offset: int, time: str, frame: Frame, user: str | None
) -> None:
    sender = None if user is None else Inbox("orders", user)
    text = protocol.encode_topic_message(str(topic), offset, time, *frame, sender)
    expected = ServerMessage(offset, time or None, frame, topic=str(topic), sender=sender)
    assert protocol.parse_server(text) == expected
    assert ("offset" in json.loads(text)) is (offset > 0)
    SERVER.validate(json.loads(text))


@pytest.mark.parametrize("id", [None, "s1"])
@pytest.mark.parametrize("reason", [None, *Reason])
def test_subscribed_round_trip(id: str | None, reason: Reason | None) -> None:
    text = protocol.encode_subscribed("room.ü", "write", Start("e", 7, reason), "e~1", id)
    assert protocol.parse_server(text) == Subscribed(
        "room.ü", "write", id, "e~1", 7, reason is None, reason
    )
    SERVER.validate(json.loads(text))
    text = protocol.encode_subscribed("mouse.1", "read", None, id=id)
    assert protocol.parse_server(text) == Subscribed("mouse.1", "read", id, durable=False)
    SERVER.validate(json.loads(text))


@pytest.mark.parametrize("id", [None, "s1"])
@pytest.mark.parametrize("code", [None, *ErrorCode])
def test_unsubscribed_round_trip(id: str | None, code: ErrorCode | None) -> None:
    text = protocol.encode_unsubscribed("room.42", code, id=id)
    expected = Unsubscribed("room.42", id)
    if code is not None:
        expected = Unsubscribed("room.42", id, code, code.meaning, code.temporary)
    assert protocol.parse_server(text) == expected
    SERVER.validate(json.loads(text))


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "subscribed", "topic": "room.42"},
        {"type": "subscribed", "topic": "room.42", "access": "read"},
        {"type": "subscribed", "topic": "room.42", "access": "read", "durable": 0},
        {"type": "subscribed", "topic": "room.42", "access": "read", "durable": True},
        {"type": "subscribed", "access": "read", "durable": False},
        {"type": "unsubscribed"},
        {"type": "message", "data": "x"},
        {"type": "message", "data": "x", "topic": 7},
        {"type": "message", "data": "x", "topic": "room.42", "from": "ann"},
        {"type": "message", "data": "x", "topic": "room.42", "from": {"user": "ann"}},
    ],
    ids=str,
)
def test_what_no_gateway_says_of_a_topic(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        protocol.parse_server(json.dumps(fields))
    assert not SERVER.is_valid(fields)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "id": IDS | JSON,
    "topic": TOPICS.map(str) | JSON,
    "epoch": EPOCHS | JSON,
    "offset": OFFSETS | JSON,
    "since": SINCE | JSON,
    "token": EPOCHS | JSON,
    "data": JSON,
    "bytes": st.just("AP8=") | JSON,
    "request": st.booleans() | JSON,
}


@given(
    st.sampled_from(["subscribe", "unsubscribe", "ack", "message"]),
    st.fixed_dictionaries({}, optional=FIELDS),
)
def test_what_the_parser_takes_the_schema_takes(kind: str, fields: dict[str, Any]) -> None:
    text = json.dumps({"type": kind, **fields})
    try:
        protocol.parse_client(text)
    except ProtocolError as exc:
        protocol.encode_error(exc.id, exc.code, str(exc)).encode()
    else:
        CLIENT.validate(json.loads(text))


@pytest.mark.parametrize("topic", ["x" * 3_000_000, "ü" * 500 + ".x", "x." + "ü" * 500])
def test_a_refusal_does_not_repeat_a_long_name(topic: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        protocol.parse_client(json.dumps({"type": "unsubscribe", "topic": topic}))
    assert len(str(caught.value)) < 200
    with pytest.raises(NameRefused) as refused:
        Topic.parse(topic)
    assert len(str(refused.value)) < 200


def test_a_topics_message_is_encoded_once_for_all_clients() -> None:
    stored, topic = Stored(9, None, b"hi", "text"), Topic("room", "42")
    first = endpoint().message(stored, topic)
    assert endpoint().message(stored, topic) is first
    assert json.loads(endpoint().message(stored)) == {
        "type": "message",
        "offset": 9,
        "time": None,
        "data": "hi",
    }


# -- the gateway's end, in any order -----------------------------------------------------


class Reading:
    """What the test knows of a subscription."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.is_begun = False
        self.epoch: str | None = None
        self.access = "read"


NUMBERS = st.sampled_from(range(3))
ACCESS: st.SearchStrategy[Access] = st.sampled_from(("read", "write"))


class SeveralTopics(RuleBasedStateMachine):
    """A client, a session that answers late or never, and streams that are replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.endpoint = endpoint()
        self.readings: dict[Topic, Reading] = {}
        self.epochs: set[tuple[Topic, str]] = set()  # of subscriptions that are over
        self.asked = 0

    def topic(self, number: int) -> Topic:
        return Topic("room", str(number))

    def write(self, text: str | None) -> Any:
        if text is None:
            return None
        SERVER.validate(json.loads(text))
        return protocol.parse_server(text)

    def retire(self, topic: Topic, reading: Reading) -> None:
        if reading.epoch:
            self.epochs.add((topic, reading.epoch))

    def note(self, topic: Topic, reading: Reading, told: Subscribed) -> None:
        assert (topic, told.epoch) not in self.epochs
        reading.epoch = told.epoch

    @rule(number=NUMBERS)
    def subscribe(self, number: int) -> None:
        topic = self.topic(number)
        self.asked += 1
        id = f"s{self.asked}"
        action = self.endpoint.receive(protocol.encode_subscribe(id, str(topic)), 0.0)
        if topic in self.readings:
            assert isinstance(action, Answer)
            assert self.write(action.text).code == "bad_request"
        elif len(self.readings) == LIMITS.subscriptions:
            assert isinstance(action, Answer)
            told = self.write(action.text)
            assert (told.topic, told.id, told.code) == (str(topic), id, "too_many")
        else:
            assert action == Subscribe(topic, id)
            self.readings[topic] = Reading(id)

    @rule(number=NUMBERS)
    def unsubscribe(self, number: int) -> None:
        topic = self.topic(number)
        action = self.endpoint.receive(protocol.encode_unsubscribe(str(topic)), 0.0)
        reading = self.readings.pop(topic, None)
        assert isinstance(action, Answer if reading is None else Unsubscribe)
        assert self.write(action.text) == Unsubscribed(str(topic))
        if reading is not None:
            self.retire(topic, reading)

    @rule(number=NUMBERS, access=ACCESS)
    def join(self, number: int, access: Access) -> None:
        """The usual case: asked and answered."""
        self.subscribe(number)
        self.answer(number, False, access)

    @rule(number=NUMBERS, is_late=st.booleans(), access=ACCESS)
    def answer(self, number: int, is_late: bool, access: Access) -> None:
        """The session answers a question, perhaps one that the client no longer asks."""
        topic = self.topic(number)
        reading = self.readings.get(topic)
        id = "s0" if is_late or reading is None else reading.id
        told = self.write(self.endpoint.subscribed(topic, START, id, access))
        if reading is None or reading.is_begun or reading.id != id:
            assert told is None
        else:
            assert (told.id, told.access, told.offset, told.recovered) == (id, access, 7, True)
            self.note(topic, reading, told)
            reading.is_begun, reading.access = True, access

    @rule(number=NUMBERS, reason=st.sampled_from((None, *Reason)), access=st.none() | ACCESS)
    def change(self, number: int, reason: Reason | None, access: Access | None) -> None:
        topic = self.topic(number)
        told = self.write(self.endpoint.subscribed_again(topic, Start("e", 9, reason), access))
        reading = self.readings.get(topic)
        if reading is None or not reading.is_begun:
            assert told is None
            return
        reading.access = access or reading.access
        assert (told.id, told.access, told.reason) == (None, reading.access, reason)
        if reason in (Reason.EPOCH, Reason.AHEAD):
            self.retire(topic, reading)
        self.note(topic, reading, told)

    @rule(number=NUMBERS, code=st.sampled_from(ErrorCode), refuse=st.booleans())
    def end(self, number: int, code: ErrorCode, refuse: bool) -> None:
        """The session refuses a question, or ends a subscription."""
        topic = self.topic(number)
        reading = self.readings.get(topic)
        id = reading.id if reading is not None and refuse else None
        told = self.write(self.endpoint.unsubscribed(topic, code, id=id))
        if reading is None or reading.is_begun is refuse:
            assert told is None
        else:
            assert (told.topic, told.id, told.code) == (str(topic), id, code)
            self.retire(topic, self.readings.pop(topic))

    @rule(number=NUMBERS)
    def publish(self, number: int) -> None:
        topic = self.topic(number)
        text = protocol.encode_client_message("m", Frame.of("x"), topic=str(topic))
        action = self.endpoint.receive(text, 0.0)
        reading = self.readings.get(topic)
        if reading is not None and reading.is_begun and reading.access == "write":
            assert action == Publish(Frame.of("x"), "m", topic=topic)
        else:
            assert isinstance(action, Answer)
            assert self.write(action.text).code == "forbidden"

    @invariant()
    def only_acknowledgements_of_what_is_read_confirm(self) -> None:
        known = {(topic, reading.epoch) for topic, reading in self.readings.items()}
        for topic, epoch in {*self.epochs, *known, (self.topic(9), "e")}:
            for offset, name in ((9, epoch or "e"), (0, "other")):
                text = protocol.encode_client_ack(offset, name, str(topic))
                action = self.endpoint.receive(text, 0.0)
                if (topic, name) in known:
                    assert isinstance(action, Confirm)
                    assert (action.topic, action.offset) == (topic, offset)
                else:
                    assert action is None

    @invariant()
    def the_inbox_is_not_concerned(self) -> None:
        action = self.endpoint.receive(protocol.encode_client_ack(5, "e"), 0.0)
        assert isinstance(action, Confirm)
        assert (action.topic, action.offset) == (None, 5)


SeveralTopics.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_several_topics_in_any_order = SeveralTopics.TestCase
