"""What services read from headers: whatever a publisher wrote, a message and its dead letter."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rawnats import POISON
from wsgateway.broker.bus import Reply
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.messages import read_sender, read_topic, write_sender, write_topic
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.dead_letters import NatsDeadLetters
from wsgateway.broker.nats.jetstream import DirectBatch
from wsgateway.broker.nats.work_queue import job_of, parse_history
from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.subjects import Inbox, Subjects, Topic
from wsgateway.services import deadletters
from wsgateway.services.message import Message

BROKER: Any = SimpleNamespace(subjects=Subjects(), epoch="1")
NAMES = (
    b"Ws-Frame", b"Ws-Client-Id", b"Ws-Request", b"Ws-Device", b"Ws-Connection", b"Ws-Attempts",
    b"Ws-Exception", b"Ws-Traceback", b"Ws-Shortened", b"Ws-Sequence", b"Nats-Msg-Id", b"\xff", b"",
)  # fmt: skip
lines = st.builds(
    lambda name, value: name + b":" + value,
    st.sampled_from(NAMES),
    st.binary(max_size=20) | st.sampled_from([b" text", b" 7", b" %ff%ZZ", b" =ZZ", b" a\nb"]),
)
blocks = st.one_of(
    st.lists(lines, max_size=6).map(lambda rest: b"\r\n".join([b"NATS/1.0", *rest, b"", b""])),
    st.sampled_from(POISON),
    st.binary(max_size=80),
)


class OneLetter:
    """A JetStream that stores one dead letter.

    Args:
        limit: Bytes that it takes.
        subject: Where the letter is.
    """

    def __init__(self, limit: int = 0, subject: str = "ws.dead.orders.ann") -> None:
        self.connection = SimpleNamespace(max_payload=limit)
        self.payload, self.headers, self.msg_id = b"x", b"", ""
        self._subject = subject
        js: Any = self
        self.broker: Any = SimpleNamespace(dead_letters=NatsDeadLetters(js, Subjects()))

    async def publish(
        self, subject: str, payload: bytes, headers: dict[str, str], *, msg_id: str
    ) -> None:
        assert not any(name.lower().startswith("nats-") for name in headers)
        self.payload, self.headers, self.msg_id = payload, hdrs.encode(headers), msg_id

    async def direct(self, stream: str, request: dict[str, Any]) -> DirectBatch:
        server = f"Nats-Stream: S\r\nNats-Subject: {self._subject}\r\nNats-Sequence: 5\r\n\r\n"
        return DirectBatch([Reply(self.payload, self.headers[:-2] + server.encode())], 0)


ACK = "$JS.ACK.S.C.3.7.3.1795622430615004386.0"


@given(blocks, st.binary(max_size=20))
def test_message_is_read_or_malformed(raw: bytes, payload: bytes) -> None:
    job = job_of(Inbox("orders", "ann"), payload, raw, ACK)
    try:
        message = Message(job, BROKER)
    except MalformedMessage:
        assert job.malformed() is not None
        return
    assert job.malformed() is None
    assert message.client_id is None or message.client_id.isascii()
    assert isinstance(message.wants_reply, bool)
    assert message.device is None or isinstance(message.device, str)
    assert message.connection is None or isinstance(message.connection, str)


@given(blocks, st.binary(max_size=300), st.integers(1200, 70_000))
def test_dead_letter_fits_and_is_read_back(raw: bytes, payload: bytes, limit: int) -> None:
    job = job_of(Inbox("orders", "ann"), payload, raw, ACK)
    stream = OneLetter(limit)
    asyncio.run(deadletters.set_aside(stream.broker, job, ValueError("x")))
    id_header = f"Nats-Msg-Id: {stream.msg_id}\r\n"
    assert len(stream.payload) + len(stream.headers) + len(id_header) <= limit
    letter = asyncio.run(deadletters.find(stream.broker, 5))
    assert (letter.offset, letter.inbox) == (5, Inbox("orders", "ann"))
    assert letter.payload == stream.payload
    assert "ValueError: x" in letter.error


@given(blocks, st.sampled_from(["ws.dead.orders.ann", "ws.dead.orders.=ZZ", "ws.dead.=.x"]))
def test_letter_that_somebody_else_wrote_is_read(raw: bytes, subject: str) -> None:
    stream = OneLetter(subject=subject)
    stream.headers = raw
    letter = asyncio.run(deadletters.find(stream.broker, 5))
    assert letter.offset == 5
    assert letter.attempts >= 0


@given(st.binary(max_size=30) | st.lists(st.integers(), max_size=4).map(lambda n: str(n).encode()))
def test_history_of_tries_is_read(data: bytes) -> None:
    parse_history(data)


@pytest.mark.parametrize("ttl", [0, 0.5, math.inf, math.nan])
async def test_reply_with_an_impossible_ttl_is_refused(ttl: float) -> None:
    """0 meant a minute, for a request; infinity was an error deep inside."""
    broker: Any = MemoryBroker()
    await broker.open()
    job = job_of(Inbox("orders", "ann"), b"x", hdrs.encode({"Ws-Request": "r1"}), ACK)
    with pytest.raises(ValueError, match="between 1 and"):
        await Message(job, broker).reply(text="y", ttl=ttl)
    assert await broker.inboxes.count(job.inbox) == 0


names = st.text(min_size=1, max_size=20).filter(
    lambda n: n.encode("utf-8", "replace").decode() == n
)


@given(names, names)
def test_sender_and_topic_both_ways(service: str, name: str) -> None:
    sender, topic = Inbox(service, name), Topic(service, name)
    assert read_sender(write_sender(sender)) == sender
    assert read_topic(write_topic(topic)) == topic


@given(st.text(alphabet="ab.=41 \r\n\u0663", max_size=8))
def test_what_anybody_writes_names_one_or_none(value: str) -> None:
    sender, topic = read_sender(value), read_topic(value)
    assert sender is None or write_sender(sender) == value
    assert topic is None or write_topic(topic) == value
