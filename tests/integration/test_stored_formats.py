"""What version 0.1 has stored is read: names, positions, tokens, cookies, tries, messages.

Do not change what these tests expect. If a format has to change, keep reading the old one, and add
the new one beside it; `docs/explanation/releases.md` promises that.
"""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.work_queue import parse_history
from wsgateway.broker.work import History
from wsgateway.identity import Identity
from wsgateway.identity.tokens import COOKIE_SALT, TOKEN_SALT, read_token
from wsgateway.layer import NatsChannelLayer
from wsgateway.protocol.subjects import Inbox, Subjects

ANN = Inbox("orders", "ann müller")
EXPIRES = 4102444800.0
"""The year 2100."""


def test_names_of_subjects_streams_and_keys() -> None:
    names = Subjects("ws")
    assert names.recv(ANN) == "ws.recv.orders.ann=20m=C3=BCller"
    assert names.send(ANN) == "ws.send.orders.ann=20m=C3=BCller"
    assert names.dead(ANN) == "ws.dead.orders.ann=20m=C3=BCller"
    assert names.cursor_key(ANN, "my phone") == "orders.ann=20m=C3=BCller.my=20phone"
    assert names.tries_key("orders", "1.2.3") == "$KV.WS_TRIES.orders.1.2.3"
    assert [names.stream(each) for each in ("recv", "dead", "chan")] == [
        "WS_RECV",
        "WS_DEAD",
        "WS_CHAN",
    ]
    assert (names.queue("orders"), names.consumer("orders")) == ("WS_SEND_orders", "service-orders")


@pytest.mark.parametrize(
    ("salt", "token"),
    [
        (
            TOKEN_SALT,
            "WyJvcmRlcnMiLCJhbm4iLG51bGwsNDEwMjQ0NDgwMC4wXQ:1xWRjd:"
            "6IxK0JGyh5mTOnJaFp6syj8vcPIfp0mvTHKOyaJ0Lyk",
        ),
        (
            COOKIE_SALT,
            "WyJvcmRlcnMiLCJhbm4iLG51bGwsNDEwMjQ0NDgwMC4wXQ:1xWRjd:"
            "fXyr8tYcV4ev4a1_Nfaz4LgEAc7brGfZ9Dd2t9sJRGg",
        ),
    ],
)
def test_token_and_cookie(settings: Any, salt: str, token: str) -> None:
    settings.SECRET_KEY = "frozen"
    assert read_token(token, salt, "web") == Identity("orders", "ann", "web", expires_at=EXPIRES)


def test_tries_of_a_message() -> None:
    assert parse_history(b"3 7 1") == History(tries=3, deliveries=7, started=True)


async def test_position_of_a_device(broker: NatsBroker) -> None:
    offset = (await broker.publish(ANN, b"x")).offset
    epoch = (await broker.inboxes.position()).epoch
    key = broker.subjects.cursor_key(ANN, "phone")
    bucket = f"{broker.subjects.upper}_CURSORS"
    await broker.jetstream.publish(f"$KV.{bucket}.{key}", f"{epoch} {offset}".encode())
    assert await broker.load_cursor(ANN, "phone") == offset


async def test_messages_of_an_inbox(broker: NatsBroker, prefix: str) -> None:
    """A text, bytes, and a Channels event, as a member of the durable group gets them."""
    event = {"type": "shipped", "order": 7}
    layer = NatsChannelLayer()
    channel = await layer.new_channel()
    await layer.group_add("orders.ann", channel)
    subject = f"{prefix}.recv.orders.ann"
    await broker.jetstream.publish(subject, b"text", {})
    await broker.jetstream.publish(subject, b"bytes", {"Ws-Frame": "binary"})
    await broker.jetstream.publish(subject, msgpack.packb(event), {"Ws-Frame": "event"})
    assert [await layer.receive(channel) for _ in range(3)] == [
        {"type": "ws.message", "text": "text"},
        {"type": "ws.message", "bytes": b"bytes"},
        event,
    ]
    await layer.close()
