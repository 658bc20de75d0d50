"""Server-sent events as a browser reads them, and what a reader may ask for. Pure."""

from __future__ import annotations

import contextlib
import json
import random
import re
from base64 import b64decode
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.event_streams import Event, Parser
from wsgateway.broker.messages import Stored
from wsgateway.broker.recovery import Start
from wsgateway.protocol import v1
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Answer, Client
from wsgateway.protocol.event_ids import MAX_ID, At, Positions, mark, parse_id
from wsgateway.protocol.limits import Limits
from wsgateway.protocol.sse import (
    MAX_TOPICS,
    SseEndpoint,
    encode_closed,
    encode_problem,
    encode_retry,
    parse_request,
    status_of,
)
from wsgateway.protocol.subjects import Address, Inbox, Topic
from wsgateway.protocol.v1 import ErrorCode, ProtocolError, Reason

ANN, BOB = Inbox("orders", "ann"), Inbox("orders", "bob")
ROOM, LOBBY = Topic("room", "42"), Topic("room", "lobby")
CLIENT = Client("c1", "orders", "ann", "default")
LIMITS = Limits(1000, 0.0, 1, 10, 25.0, 10.0, subscriptions=10)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\r\n :\0\ufeffa\u2028")


@pytest.fixture
def endpoint() -> SseEndpoint:
    return new()


def new() -> SseEndpoint:
    endpoint = SseEndpoint(LIMITS, 0.0)
    endpoint.welcome(CLIENT, Start("e1", 7))
    return endpoint


def stored(data: str | bytes, offset: int = 9, **options: str) -> Stored:
    text = isinstance(data, str)
    payload = data.encode() if isinstance(data, str) else data
    return Stored(
        offset, None, payload, "text" if text else "binary", "2026-11-26T12:00:00Z", **options
    )


def read(text: str | None) -> list[Event]:
    assert text is not None
    return list(Parser().feed(text))


@given(TEXTS)
def test_browser_gets_the_text_with_each_line_break_as_line_feed(text: str) -> None:
    (event,) = read(new().message(stored(text)))
    assert event.name == "message"
    assert event.data == re.sub(r"\r\n?", "\n", text)


@given(TEXTS)
def test_json_format_has_each_character(text: str) -> None:
    endpoint = new()
    endpoint.as_json = True
    (event,) = read(endpoint.message(stored(text)))
    assert event.fields["data"] == text
    (event,) = read(
        endpoint.message(stored(text), ROOM)
        if endpoint.subscribed(ROOM, Start("t1", 1), "0", "read")
        else None
    )
    assert (event.name, event.fields["topic"], event.fields["data"]) == ("message", "room.42", text)


@given(st.binary())
def test_binary_is_base64_with_a_name_of_its_own(payload: bytes) -> None:
    endpoint = new()
    endpoint.subscribed(ROOM, Start("t1", 1), "0", "read")
    for topic, name in ((None, "binary"), (ROOM, "binary:room.42")):
        (event,) = read(endpoint.message(stored(payload), topic))
        assert (event.name, b64decode(event.data)) == (name, payload)


def test_topics_name_their_events_and_share_their_encoding(endpoint: SseEndpoint) -> None:
    endpoint.subscribed(ROOM, Start("t1", 1), "0", "read")
    message = stored("a\nb")
    (event,) = read(endpoint.message(message, ROOM))
    assert (event.name, event.data) == ("room.42", "a\nb")
    assert message.event == "event: room.42\ndata: a\ndata: b\n\n"
    other = new()
    other.subscribed(ROOM, Start("t1", 1), "0", "read")
    message.event = "event: shared\ndata: x\n\n"
    (event,) = read(other.message(message, ROOM))
    assert event.name == "shared"


def test_answers_to_requests_are_left_out(endpoint: SseEndpoint) -> None:
    before = stored("a")
    assert endpoint.message(before) is not None
    assert endpoint.message(stored("x", offset=before.offset + 5, reply_to="q1")) is None
    endpoint.subscribed(ROOM, Start("t1", 1), "0", "read")
    (event,) = read(endpoint.message(stored("b"), ROOM))
    at = parse_id(event.id)[mark(ANN)]
    assert at.offset == before.offset + 5, "or answers would count as missed"


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (None, "recovered"),
        (Reason.NEW, "welcome"),
        *((each, "gap") for each in Reason if each != "new"),
    ],
)
def test_reader_is_told_how_it_begins(reason: Reason | None, name: str) -> None:
    (event,) = read(SseEndpoint(LIMITS, 0.0).welcome(CLIENT, Start("e1", 7, reason)))
    expected = {"epoch": "e1", "offset": 7} | ({} if reason is None else {"reason": reason})
    assert (event.name, event.fields) == (name, expected)
    assert parse_id(event.id) == {mark(ANN): At("e1", 7)}


def test_first_id_holds_every_position(endpoint: SseEndpoint) -> None:
    """A topic's own beginning is written later, and was encoded before the inbox's was known."""
    endpoint = SseEndpoint(LIMITS, 0.0)
    parser = Parser()
    topic = endpoint.subscribed(ROOM, Start("t1", 3), "0", "read")
    begin = endpoint.welcome(CLIENT, Start("e1", 7))
    first, second = [*parser.feed(begin), *parser.feed(topic)]
    assert parse_id(first.id) == {mark(ANN): At("e1", 7), mark(ROOM): At("t1", 3)}
    assert second.id == first.id
    assert second.fields == {"topic": "room.42", "epoch": "t1", "offset": 3}


def test_id_moves_with_what_is_read(endpoint: SseEndpoint) -> None:
    endpoint.subscribed(ROOM, Start("t1", 3), "0", "read")
    endpoint.message(stored("a", 12))
    (event,) = read(endpoint.message(stored("b", 5), ROOM))
    assert parse_id(event.id) == {mark(ANN): At("e1", 12), mark(ROOM): At("t1", 5)}


def test_gap_in_the_middle_does_not_move_the_reader_back(endpoint: SseEndpoint) -> None:
    endpoint.message(stored("a", 12))
    (event,) = read(endpoint.welcome(CLIENT, Start("e1", 10, Reason.TRIMMED)))
    assert parse_id(event.id) == {mark(ANN): At("e1", 12)}
    (event,) = read(endpoint.welcome(CLIENT, Start("e2", 0, Reason.EPOCH)))
    assert parse_id(event.id) == {mark(ANN): At("e2", 0)}


def test_ephemeral_topic_has_no_position(endpoint: SseEndpoint) -> None:
    (event,) = read(endpoint.subscribed(ROOM, None, "0", "read"))
    assert (event.name, event.fields) == ("welcome", {"topic": "room.42", "durable": False})
    text = endpoint.message(stored("x", 0), ROOM)
    assert text == "event: room.42\ndata: x\n\n"


def test_change_of_a_right_to_write_is_not_told(endpoint: SseEndpoint) -> None:
    endpoint.subscribed(ROOM, Start("t1", 3), "0", "read")
    assert endpoint.subscribed_again(ROOM, Start("t1", 3), "write") is None
    (event,) = read(endpoint.subscribed_again(ROOM, Start("t2", 0, Reason.EPOCH)))
    assert (event.name, event.fields["topic"]) == ("gap", "room.42")


def test_right_that_ends_ends_the_response(endpoint: SseEndpoint) -> None:
    assert endpoint.lost(ROOM, ErrorCode.FORBIDDEN).code is CloseCode.FORBIDDEN
    assert endpoint.lost(ROOM, ErrorCode.TOO_SLOW).code is CloseCode.TOO_SLOW


def test_heartbeat_is_a_comment(endpoint: SseEndpoint) -> None:
    endpoint.open(0.0)
    assert endpoint.deadline == 25.0
    assert endpoint.check(24.9, busy=False) is None
    beat = endpoint.check(25.0, busy=False)
    assert isinstance(beat, Answer)
    parser = Parser()
    assert not list(parser.feed(beat.text))
    assert parser.comments == 1
    assert endpoint.deadline == 50.0
    endpoint.stop()
    assert endpoint.deadline is None


def test_end_says_why_and_when_to_come_back(endpoint: SseEndpoint) -> None:
    assert endpoint.announces(CloseCode.SHUTTING_DOWN)
    assert not endpoint.announces(CloseCode.NOT_AUTHENTICATED)
    parser = Parser()
    assert not list(parser.feed(endpoint.closing(2.5)))
    assert parser.retry == 2500
    assert encode_retry(0.0) == "retry: 1\n\n"  # with 0, it would not wait
    parser = Parser()
    (event,) = parser.feed(encode_closed(4501, "not authenticated"))
    assert parser.retry == 2**31 - 1  # a browser would come back after a moment
    assert (event.name, event.fields) == ("closed", {"code": 4501, "reason": "not authenticated"})


@pytest.mark.parametrize("code", CloseCode)
def test_status_says_whether_to_come_back(code: CloseCode) -> None:
    status = status_of(code)
    if code is CloseCode.TOO_MANY_CONNECTIONS:
        assert status == 429  # a reader that closes another tab may come back
    elif code in (CloseCode.INTERNAL_ERROR, CloseCode.MESSAGE_TOO_BIG):
        assert status >= 500
    else:
        assert (status == 503) == code.reconnect
    problem = json.loads(encode_problem(status, "why", code))
    assert (problem["status"], problem["detail"], problem["code"]) == (status, "why", code)
    assert (problem["type"], problem["title"]) == ("about:blank", status.phrase)


# -- ids ---------------------------------------------------------------------------------

NAMES = st.text("ab.~,é\n", min_size=1, max_size=6)
ADDRESSES: st.SearchStrategy[Address] = st.builds(Inbox, NAMES, NAMES) | st.builds(
    Topic, NAMES, NAMES
)
EPOCHS = st.text("0123456789abcXYZ_-", min_size=1, max_size=64)
OFFSETS = st.integers(0, v1.MAX_OFFSET)


@given(st.dictionaries(ADDRESSES, st.builds(At, EPOCHS, OFFSETS), max_size=8, min_size=1))
def test_id_holds_each_position(positions: dict[Address, At]) -> None:
    reader = Positions()
    for address, at in positions.items():
        reader.begin(address, at)
    assert parse_id(reader.id) == {mark(address): at for address, at in positions.items()}
    assert reader.id.isascii()
    assert reader.id.isprintable()


def test_id_of_one_position_is_epoch_and_offset() -> None:
    reader = Positions()
    reader.begin(ANN, At("20261126", 7))
    reader.move(ANN, 8)
    epoch, _, offset = reader.id.rpartition(".")
    assert offset == "8"
    assert v1.Resume(epoch=epoch, offset=8).stream_epoch == "20261126"


def test_largest_id_fits_a_header() -> None:
    reader = Positions()
    reader.begin(ANN, At("1" * 20, v1.MAX_OFFSET))
    for number in range(MAX_TOPICS):
        reader.begin(Topic(f"service{number}", "x"), At(str(number) * 20, v1.MAX_OFFSET))
    assert len(reader.id) <= MAX_ID
    assert len(parse_id(reader.id)) == MAX_TOPICS + 1


def test_marks_tell_inboxes_and_topics_apart() -> None:
    assert len({mark(each) for each in (ANN, BOB, Topic("orders", "ann"), ROOM, LOBBY)}) == 5
    assert mark(ANN) == v1.mark_of(ANN)


@given(st.text() | st.text("0123456789abcdef~.,"))
def test_junk_is_no_id(text: str) -> None:
    try:
        parse_id(text)
    except ValueError:
        return
    assert re.fullmatch(r"[\w~.,-]+", text)


# -- requests ----------------------------------------------------------------------------


def test_what_a_reader_asks_for() -> None:
    request = parse_request(
        b"topic=room.42&topic=room.lobby&topic=room.42&since=5&format=json&device=d"
    )
    assert request == ([ROOM, LOBBY], 5, None, True, [])
    assert parse_request(b"topic=room.42&topic_token=a").tokens == ["a"]
    assert parse_request(b"") == ([], "new", None, False, [])


def test_header_wins_over_the_query() -> None:
    """A page that was reloaded has the query's id, and the browser that reconnects a newer one."""
    new_id, old = f"e1~{mark(ANN)}.9", f"e1~{mark(ANN)}.4"
    request = parse_request(f"last_event_id={old}".encode(), [new_id.encode()])
    assert request.positions == {mark(ANN): At("e1", 9)}
    request = parse_request(f"last_event_id={old}".encode(), [b""])
    assert request.positions == {mark(ANN): At("e1", 4)}


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("topic=room", "topic 'room' is not <service>.<name>"),
        ("topic=room.a%0Ab", "line break"),
        ("since=0", 'since must be "new", "all" or an integer from 1 to 1000'),
        ("since=1001", "since must be"),
        ("since=new&since=all", "since is given twice"),
        ("format=xml", 'format must be "text" or "json"'),
        ("last_event_id=7", "not an id that a gateway gave out"),
        ("topic=room.42&topic_token=a&topic_token=b", "more topic_token than topic"),
        ("topic=%ff.x", "the query string cannot be read"),
        ("&".join(f"topic=r.{n}" for n in range(MAX_TOPICS + 1)), f"more than {MAX_TOPICS} topics"),
    ],
)
def test_request_that_is_refused_says_why(query: str, text: str) -> None:
    with pytest.raises(ProtocolError, match=re.escape(text)):
        parse_request(query.encode())


@given(
    st.binary(max_size=60) | st.text("topicsnelaf=&%0.~42").map(str.encode), st.binary(max_size=60)
)
def test_junk_is_parsed_or_refused(query: bytes, id: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse_request(query, [id])


# -- connections that end anywhere ---------------------------------------------------------


class Log:
    """What is stored at an address: each message is the number that says how many were before."""

    def __init__(self) -> None:
        self.epoch = 0
        self.kept: dict[int, int] = {}  # numbers, by offset
        self.last = self.trimmed = self.count = 0

    def publish(self) -> None:
        self.last += 1
        self.kept[self.last] = self.count
        self.count += 1

    def trim(self) -> None:
        if self.kept:
            self.trimmed = min(self.kept)
            del self.kept[self.trimmed]

    def renew(self) -> None:
        self.epoch += 1
        self.kept.clear()
        self.last = self.trimmed = 0

    def find_start(self, claim: At | None) -> Start:
        if claim is None:
            return Start(str(self.epoch), self.last, Reason.NEW)
        if claim.epoch != str(self.epoch):
            return Start(str(self.epoch), 0, Reason.EPOCH)
        missing = claim.offset < self.trimmed
        return Start(claim.epoch, claim.offset, Reason.TRIMMED if missing else None)

    def after(self, offset: int) -> list[int]:
        """Return the offsets of messages to deliver."""
        return [each for each in sorted(self.kept) if each > offset]

    def next_after(self, offset: int) -> int:
        """Return the number of the first message that is kept behind *offset*."""
        return min((self.kept[each] for each in self.after(offset)), default=self.count)


class Cut:
    """A reader whose connections end anywhere. It checks each event that it gets."""

    def __init__(self, logs: dict[Address, Log]) -> None:
        self.logs = logs
        self.parser = Parser()
        self.next: dict[Address, int] = {}  # the number that it expects

    def response(self, luck: random.Random) -> list[str]:
        """Return the parts of what the gateway writes, in one of the orders that may happen."""
        request = parse_request(b"topic=room.42&topic=room.lobby", [self.parser.id.encode()])
        endpoint = SseEndpoint(LIMITS, 0.0)
        endpoint.claimed = request.positions or {}
        starts = {}
        for each in self.logs:
            starts[each] = self.logs[each].find_start(endpoint.claimed.get(mark(each)))
        frames = {
            topic: endpoint.subscribed(topic, starts[topic], "0", "read")
            for topic in request.topics
        }
        sources = [self._messages(endpoint, ANN, starts[ANN])]
        sources += [self._topic(endpoint, topic, frames[topic], starts[topic]) for topic in frames]
        parts = [encode_retry(1), endpoint.welcome(CLIENT, starts[ANN])]
        while sources:
            source = luck.choice(sources)
            try:
                parts.append(next(source))
            except StopIteration:
                sources.remove(source)
        return parts

    def _topic(
        self, endpoint: SseEndpoint, topic: Topic, frame: str, start: Start
    ) -> Iterator[str]:
        yield endpoint.begins(topic, frame)
        yield from self._messages(endpoint, topic, start)

    def _messages(self, endpoint: SseEndpoint, address: Address, start: Start) -> Iterator[str]:
        log, topic = self.logs[address], address if isinstance(address, Topic) else None
        for offset in log.after(start.offset):
            text = endpoint.message(stored(str(log.kept[offset]), offset), topic)
            assert text is not None
            yield text

    def read(self, body: str) -> None:
        """Take what came. A browser drops an event without its end."""
        for event in self.parser.feed(body[: body.rfind("\n\n") + 2]):
            self._note(event.id)
            if event.name in ("welcome", "recovered", "gap"):
                name = event.fields.get("topic")
                self._begin(Topic.parse(name) if name else ANN, event)
            else:
                address = ANN if event.name == "message" else Topic.parse(event.name)
                number = int(event.data)
                assert number <= self.next[address], "messages are missing, and no gap was told"
                self.next[address] = max(self.next[address], number + 1)

    def _note(self, id: str) -> None:
        """Expect what comes after the first position that it has."""
        for address, log in self.logs.items():
            at = parse_id(id).get(mark(address))
            if at is not None and address not in self.next:
                self.next[address] = log.next_after(at.offset)

    def _begin(self, address: Address, event: Event) -> None:
        first = self.logs[address].next_after(event.fields["offset"])
        if event.name == "gap":
            self.next[address] = max(self.next[address], first)
        assert self.next[address] >= first, "messages are missing, and no gap was told"


@given(st.randoms(use_true_random=False))
def test_nothing_is_lost_in_silence_wherever_a_connection_ends(luck: random.Random) -> None:
    """A topic's gap was lost if the connection ended between the welcome and the gap's event."""
    logs: dict[Address, Log] = {ANN: Log(), ROOM: Log(), LOBBY: Log()}
    reader = Cut(logs)
    for _ in range(luck.randint(1, 5)):
        for _ in range(luck.randint(0, 6)):
            log = luck.choice([*logs.values()])
            luck.choice([log.publish, log.publish, log.publish, log.trim, log.renew])()
        body = "".join(reader.response(luck))
        reader.read(body[: luck.randint(0, len(body))])
    reader.read("".join(reader.response(luck)))
    assert reader.next == {address: log.count for address, log in logs.items()}
