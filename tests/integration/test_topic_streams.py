"""The streams of topics: made, limited, brought in line with the settings, and found by others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.traffic import broker_at
from tests.support import until
from wsgateway import declared
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.declared import TopicKind
from wsgateway.exceptions import BrokerMisconfigured, QueueFull
from wsgateway.protocol.subjects import Topic
from wsgateway.topics.registry import topic


def allow(identity: Any, name: str) -> None:
    return None


@pytest.fixture
def topics(nats_settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The services `room`, with durable topics, and `tick`, with ephemeral ones."""
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    topic("room")(allow)
    topic("tick", durable=False)(allow)
    nats_settings.WSGATEWAY_SERVICES = ["orders"]
    return nats_settings


async def config_of(broker: NatsBroker, service: str) -> dict[str, Any]:
    info = await broker.streams.info(broker.subjects.topic_stream(service))
    assert info is not None
    found: dict[str, Any] = info["config"]
    return found


async def test_setup_streams_applies_a_change(topics: Any, broker: NatsBroker, prefix: str) -> None:
    config = await config_of(broker, "room")
    assert config["subjects"] == [f"{prefix}.topic.room.*"]
    assert config["max_age"] == 7 * 86400 * 10**9
    assert (config["max_msgs_per_subject"], config["discard"]) == (10_000, "new")
    assert config["republish"] == {
        "src": f"{prefix}.topic.room.*",
        "dest": f"{prefix}.live.topic.room.{{{{wildcard(1)}}}}",
    }
    assert config["allow_direct"]
    assert config["allow_msg_ttl"]
    assert config["max_bytes"] == -1  # WSGATEWAY_TOPIC_MAX_BYTES of the tests

    payload = bytes(400_000)
    for _ in range(3):
        await broker.jetstream.publish(f"{prefix}.topic.room.42", payload, {})
    room = {"max_age": 3600.0, "max_messages": 2, "max_bytes": 500_000}
    topics.WSGATEWAY_TOPICS = {"room": room}
    changed = broker_from_settings(wsgateway_settings)
    lines = await changed.set_up()
    await changed.close()
    assert any("TOPIC_room: changed" in line for line in lines), lines
    config = await config_of(broker, "room")
    assert config["max_age"] == 3600 * 10**9
    assert (config["max_msgs_per_subject"], config["max_bytes"]) == (2, 500_000)
    # As docs/reference/settings.md says
    info = await broker.streams.info(broker.subjects.topic_stream("room"))
    assert info is not None
    assert (info["state"]["messages"], info["state"]["first_seq"]) == (2, 2)
    with pytest.raises(QueueFull):
        await broker.jetstream.publish(f"{prefix}.topic.room.43", payload, {})


async def test_process_that_declares_nothing_knows_the_topics(
    topics: Any, broker: NatsBroker, nats_server: EmbeddedServer, prefix: str
) -> None:
    """A topic's queue of what clients send does not make it a service of users."""
    for service in ("room", "tick"):
        config = {"name": broker.subjects.queue(service), "retention": "workqueue"}
        config["subjects"] = [broker.subjects.all_of("send", service)]  # type: ignore[assignment]
        await broker.jetstream.api(f"STREAM.CREATE.{config['name']}", config)
    async with broker_at([nats_server.url], prefix) as other:
        assert await other.services.topics_of("room") is TopicKind.DURABLE
        assert await other.services.topics_of("tick") is TopicKind.EPHEMERAL
        assert await other.services.topics_of("orders") is TopicKind.NONE
        assert await other.services.topics_of("chat") is TopicKind.NONE
        assert await other.service_exists("orders")
        assert not await other.service_exists("room")
        assert not await other.service_exists("tick")
        assert await other.services.queue("room") == broker.subjects.queue("room")
        assert {queue.service for queue in await other.operations.queues()} == {
            "orders",
            "room",
            "tick",
        }
        purposes = {each.name: each.purpose for each in await other.operations.streams()}
        assert purposes[other.subjects.topic_stream("room")] == "topics of the service room"


async def test_stream_that_is_gone_is_made_again(topics: Any, broker: NatsBroker) -> None:
    room = Topic("room", "42")
    assert (await broker.publish(room, b"1")).offset == 1
    assert (await broker.publish(room, b"2")).offset == 2
    await broker.jetstream.api(f"STREAM.DELETE.{broker.subjects.topic_stream('room')}")
    assert (await broker.publish(room, b"3")).offset == 1


async def test_restored_topics_have_a_new_epoch(topics: Any, broker: NatsBroker) -> None:
    """Otherwise offsets of lost messages would count for new ones."""
    room = broker.log(Topic("room", "42"))
    before = (await room.position()).epoch
    await broker.set_up()
    assert (await room.position()).epoch == before
    lines = await broker.set_up(restored=True)
    assert any("TOPIC_room: has a new epoch" in line for line in lines)
    assert (await room.position()).epoch != before


async def test_new_topics_are_heard_of_in_the_open_mode(
    nats_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where clients may name any service, one that gets topics stops being one of users."""
    nats_settings.WSGATEWAY_SERVICES = ["*"]
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    assert await broker.service_exists("room")
    topic("room")(allow)
    declaring = broker_from_settings(wsgateway_settings)
    await declaring.open()
    await declaring.wait_ready()
    await until(lambda: broker.known_service("room") is None, what="the broadcast")
    assert not await broker.service_exists("room")
    assert await broker.services.topics_of("room") is TopicKind.DURABLE
    await declaring.close()
    await broker.close()


@pytest.mark.parametrize(
    ("now", "says"),
    [("users", "for users"), ("ephemeral", "with ephemeral topics")],
)
async def test_service_that_changes_its_kind_is_refused(
    topics: Any, broker: NatsBroker, monkeypatch: pytest.MonkeyPatch, now: str, says: str
) -> None:
    monkeypatch.setattr(declared, "topics", {})
    if now == "users":
        topics.WSGATEWAY_SERVICES = ["room"]
    else:
        topic("room", durable=False)(allow)
    other = broker_from_settings(wsgateway_settings)
    stream = broker.subjects.topic_stream("room")
    with pytest.raises(BrokerMisconfigured, match=f"'room' is declared {says}.*{stream}.*delete"):
        await other.set_up()
    await other.open()
    with pytest.raises(BrokerMisconfigured, match="another name"):
        await other.wait_ready()
    await other.close()
