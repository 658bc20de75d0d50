"""`wsgateway.user_data`: everything of a user is found and deleted, on every broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from tests.contract.conftest import Brokers
from tests.support import until
from wsgateway import user_data
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Connection
from wsgateway.broker.memory import MemoryBroker
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.operations import Held
from wsgateway.exceptions import BrokerUnavailable, NameRefused
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import Identity
from wsgateway.layer import blobs, wire
from wsgateway.outbox import enqueue, enqueue_topic
from wsgateway.outbox.models import OutboxMessage
from wsgateway.presence.results import Disconnected
from wsgateway.protocol.frames import EVENT, Frame
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox, encode_token
from wsgateway.protocol.v1 import Resume
from wsgateway.protocol.v1.endpoint import V1Endpoint

pytestmark = [pytest.mark.django_db(transaction=True)]

ZOE = "zoë.7c9e"
OTHERS = ("zoë", "7c9e", "zoë.7c9f", "*", "bob")
SERVICES = ("orders", "Orders", "chat")


@pytest.fixture(autouse=True)
async def fresh(brokers: Brokers) -> AsyncIterator[None]:
    """The connections that the functions use must share the store of *brokers*."""
    brokers.settings.WSGATEWAY_SERVICES = list(SERVICES)
    runtime.reset()
    yield
    runtime.reset()


async def fill(broker: Broker, inbox: Inbox) -> None:
    """Store one of each kind, and one message more; each says whose it is."""
    content = inbox.user.encode()
    last = await broker.publish(inbox, content)
    await broker.publish(inbox, content, headers={"X-For": encode_token(inbox.user)})
    await broker.save_cursor(inbox, inbox.user, last.offset)
    msg_id = f"{inbox.service}-{inbox.user}-sent"
    await broker.offer(inbox, Frame.of(inbox.user), encode_token(msg_id))
    await broker.dead_letters.add(inbox, content, {}, encode_token(f"{msg_id}-dead"))


FILLED = Held(messages=2, cursors=1, queued=1, dead_letters=1)


async def everything(broker: Any) -> list[str]:
    """Return all that the broker stores, in every stream and bucket."""
    if isinstance(broker, MemoryBroker):
        store = broker.store
        kept = store.inboxes.messages.items()
        inboxes = ((inbox, each.stored.payload) for inbox, found in kept for each in found)
        queued = (sent for queue in store.queues.values() for sent in queue)
        others = (store.cursors, queued, store.dead.values(), store.channels.blobs.values())
        return [repr(each) for part in (inboxes, *others) for each in part]
    assert isinstance(broker, NatsBroker)
    names: list[str] = []
    while True:  # other tests on this server may have left more streams than one answer names
        answer = await broker.jetstream.api("STREAM.NAMES", {"offset": len(names)})
        names += answer["streams"] or ()
        if len(names) >= answer["total"]:
            break
    found = []
    for name in names:
        if name.removeprefix("KV_").startswith(broker.subjects.upper):
            request = {"seq": 1, "next_by_subj": ">", "batch": 1000}
            batch = await broker.jetstream.direct(name, request)
            assert not batch.pending
            found += [f"{reply.headers!r} {reply.data!r}" for reply in batch.replies]
    return found


async def about(broker: Broker, user: str) -> list[str]:
    """Return the records that say the user's name, in whichever form."""
    written = (user, repr(user.encode())[2:-1], encode_token(user))
    return [each for each in await everything(broker) if any(name in each for name in written)]


async def test_nothing_of_the_user_is_left_anywhere(broker: Broker) -> None:
    for service in SERVICES:
        for user in (ZOE, *OTHERS):
            await fill(broker, Inbox(service, user))
    await broker.publish(Inbox(GROUP_SERVICE, ZOE), b"a durable group of the same name")
    large = wire.pack(0.0, b"", ZOE.encode() * 10)
    claim = await blobs.store(broker.blobs, large)
    await broker.publish(Inbox("chat", ZOE), claim, kind=EVENT)
    found = await user_data.afind(ZOE)
    assert found.services == {
        "Orders": FILLED,
        "chat": Held(**{**asdict(FILLED), "messages": 3}),
        "orders": FILLED,
    }
    assert found.total == 16
    assert len(await about(broker, ZOE)) == found.total + 2  # a blob, and the group's message
    deleted = await user_data.adelete(ZOE)
    assert (deleted.services, deleted.silent) == (found.services, ())
    [left] = await about(broker, ZOE)
    assert "a durable group" in left
    for user in OTHERS:
        assert (await user_data.afind(user)).services == dict.fromkeys(sorted(SERVICES), FILLED)
    assert (await user_data.adelete(ZOE)).total == 0


async def test_only_in_one_service(broker: Broker) -> None:
    for service in SERVICES:
        await fill(broker, Inbox(service, ZOE))
    assert (await user_data.adelete(ZOE, service="orders")).services == {"orders": FILLED}
    assert (await user_data.afind(ZOE)).services == {"Orders": FILLED, "chat": FILLED}
    assert (await user_data.afind(ZOE, service="orders")).total == 0


async def test_waiting_rows_of_the_outbox_go_too(broker: Broker) -> None:
    """A relay would send them to the inbox that was just emptied."""
    for service, user in (("orders", ZOE), ("chat", ZOE), ("orders", "bob")):
        await sync_to_async(enqueue)(service, user, text="x")
    await sync_to_async(enqueue_topic)("room", ZOE, text="for everybody who reads it")
    assert (await user_data.afind(ZOE)).outbox_rows == 2
    assert (await user_data.adelete(ZOE, service="chat")).outbox_rows == 1
    assert (await user_data.adelete(ZOE)).outbox_rows == 1
    rows = [(row.service, row.user) async for row in OutboxMessage.objects.all()]
    assert rows == [("orders", "bob"), ("room", ZOE)]


async def test_open_socket_is_closed_and_writes_no_cursor(brokers: Brokers) -> None:
    """Closing a socket writes its device's cursor, so the name was back at once."""
    hub = Hub(Connection(asyncio.get_running_loop(), brokers.make()))
    await hub.open()
    try:
        await hub.broker.wait_ready(20)
        await hub.presence.listed()
        codes: list[int] = []

        async def send(event: Any) -> None:
            if event["type"] == "websocket.close":
                codes.append(event["code"])

        inbox = Inbox("orders", ZOE)

        async def open_socket() -> Session:
            identity = Identity("orders", ZOE, "phone")
            session = Session(hub, identity, Socket(Transport(send), V1Endpoint), {"headers": []})
            await session.start(Resume())
            return session

        session = await open_socket()
        offset = (await hub.broker.publish(inbox, b"x")).offset
        cursor = session.inbox_subscription.cursor
        hub.cursors.confirm(cursor, hub.broker.inboxes.epoch, offset)
        deleted = await user_data.adelete(ZOE)
        await until(lambda: codes == [4505])
        await session.stop()
        await hub.cursors.flush()
        assert (deleted.sockets, deleted.total) == (1, 1)
        assert await about(hub.broker, ZOE) == []
        session = await open_socket()  # who comes back is a new user, and is treated as one
        offset = (await hub.broker.publish(inbox, b"y")).offset
        hub.cursors.confirm(session.inbox_subscription.cursor, hub.broker.inboxes.epoch, offset)
        await hub.cursors.flush()
        assert await hub.broker.load_cursor(inbox, "phone") == offset
        await session.stop()
    finally:
        await hub.close()


@pytest.mark.parametrize(("user", "service"), [("", None), ("x" * 256, None), ("ann", "")])
async def test_name_that_nobody_can_have(broker: Broker, user: str, service: str | None) -> None:
    """An empty name must never be taken for all of them."""
    with pytest.raises(NameRefused):
        await user_data.afind(user, service=service)
    with pytest.raises(NameRefused):
        await user_data.adelete(user, service=service)


async def test_interrupted_deletion_is_completed_by_the_next(
    brokers: Brokers, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two, two services are no longer declared."""
    for service in SERVICES:
        await fill(broker, Inbox(service, ZOE))
    kind: Any = type(broker.operations)
    erase, calls = kind.erase, iter([True])

    async def once(operations: Any, inbox: Inbox) -> Any:
        if next(calls, False):
            return await erase(operations, inbox)
        raise BrokerUnavailable("killed")

    with monkeypatch.context() as patched:
        patched.setattr(kind, "erase", once)
        with pytest.raises(BrokerUnavailable):
            await user_data.adelete(ZOE)
    assert len((await user_data.afind(ZOE)).services) == 2
    brokers.settings.WSGATEWAY_SERVICES = ["Orders"]
    assert (await user_data.adelete(ZOE)).services == {"chat": FILLED, "orders": FILLED}
    assert await about(broker, ZOE) == []


async def test_log_says_that_it_was_deleted_and_nothing_of_it(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver of post_delete left no trace, and nobody heard of a gateway that was silent."""

    async def silent(*_: Any) -> Disconnected:
        return Disconnected(0, ("gw1",))

    monkeypatch.setattr(user_data, "close_sockets", silent)
    caplog.set_level(logging.INFO, "wsgateway")
    await broker.publish(Inbox("orders", ZOE), b"a secret")
    assert (await user_data.adelete(ZOE)).silent == ("gw1",)
    done, warning = [each for each in caplog.records if getattr(each, "user", None) == ZOE]
    assert done.getMessage() == "deleted a user's data: 1 record, 0 sockets closed"
    assert (warning.levelname, "gw1" in warning.getMessage()) == ("WARNING", True)
    assert "secret" not in caplog.text


def test_from_synchronous_code(settings: Any) -> None:
    settings.PUBSUB_BROKER = "memory"
    runtime.reset()
    inbox = Inbox("orders", ZOE)
    runtime.call_sync(lambda broker: broker.publish(inbox, b"x"))
    assert user_data.find(ZOE).services == {"orders": Held(messages=1)}
    assert user_data.delete(ZOE).services == {"orders": Held(messages=1)}
    assert user_data.find(ZOE).total == 0
