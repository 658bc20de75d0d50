"""What services read from headers: whatever a publisher wrote, a message and its dead letter."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rawnats import POISON
from wsgateway.broker.bus import Reply
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.dead_letters import NatsDeadLetters
from wsgateway.broker.nats.work_queue import _parse_history, job_of
from wsgateway.exceptions import MalformedMessage
from wsgateway.protocol.subjects import Inbox, Subjects
from wsgateway.services import deadletters
from wsgateway.services.message import Message

BROKER: Any = SimpleNamespace(subjects=Subjects(), epoch="1")
JETSTREAM: Any = None
LETTERS = NatsDeadLetters(JETSTREAM, Subjects())
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
    kept, headers = deadletters._compose(job, ValueError("x"), limit)
    written = hdrs.encode(headers)
    assert len(kept) + len(written) <= limit
    assert not any(name.lower().startswith("nats-") for name in headers)
    server = b"Nats-Stream: S\r\nNats-Subject: ws.dead.orders.ann\r\nNats-Sequence: 5\r\n\r\n"
    letter = deadletters._letter(LETTERS._entry(Reply(kept, written[:-2] + server)))
    assert (letter.offset, letter.inbox, letter.payload) == (5, Inbox("orders", "ann"), kept)
    assert "ValueError: x" in letter.error


@given(blocks, st.sampled_from(["ws.dead.orders.ann", "ws.dead.orders.=ZZ", "ws.dead.=.x"]))
def test_letter_that_somebody_else_wrote_is_read(raw: bytes, subject: str) -> None:
    server = f"Nats-Stream: S\r\nNats-Subject: {subject}\r\nNats-Sequence: 5\r\n\r\n".encode()
    letter = deadletters._letter(LETTERS._entry(Reply(b"x", raw[:-2] + server)))
    assert letter.offset == 5
    assert letter.attempts >= 0


@given(st.binary(max_size=30) | st.lists(st.integers(), max_size=4).map(lambda n: str(n).encode()))
def test_history_of_tries_is_read(data: bytes) -> None:
    _parse_history(data)


@pytest.mark.parametrize("ttl", [0, 0.5, math.inf, math.nan])
async def test_reply_with_an_impossible_ttl_is_refused(ttl: float) -> None:
    """0 meant a minute, for a request; infinity was an error deep inside."""
    broker: Any = MemoryBroker()
    await broker.open()
    job = job_of(Inbox("orders", "ann"), b"x", hdrs.encode({"Ws-Request": "r1"}), ACK)
    with pytest.raises(ValueError, match="between 1 and"):
        await Message(job, broker).reply(text="y", ttl=ttl)
    assert await broker.count(job.inbox) == 0
