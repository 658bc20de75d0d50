"""What operators see of streams on NATS: differences, what is missing, who holds them."""

from __future__ import annotations

from typing import Any

import pytest

from wsgateway.broker.cluster import Cluster
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.operations import Stream
from wsgateway.conf import settings as wsgateway_settings


async def streams_of(broker: NatsBroker) -> dict[str, Stream]:
    return {stream.name: stream for stream in await broker.operations.streams()}


async def test_difference_from_the_settings_is_named_with_its_cure(
    broker: NatsBroker, nats_settings: Any
) -> None:
    name = broker.subjects.stream("recv")
    assert (await streams_of(broker))[name].differences == ()
    nats_settings.WSGATEWAY_INBOX_MAX_AGE = 3600.0
    other = broker_from_settings(wsgateway_settings)
    await other.open()
    await other.wait_ready()
    found = (await streams_of(other))[name]
    await other.close()
    assert found.max_age == 7 * 86400.0  # as it is
    [text] = found.differences
    assert "settings want 3600 s" in text
    assert "setup_streams" in text


async def test_stream_that_is_missing_is_listed(broker: NatsBroker) -> None:
    name = broker.subjects.stream("dead")
    await broker.jetstream.api(f"STREAM.DELETE.{name}")
    found = (await streams_of(broker))[name]
    assert found.last_error == 'it does not exist; run "manage.py setup_streams"'
    assert found.purpose == "dead letters"
    assert found.messages == 0


async def test_every_stream_has_a_purpose(broker: NatsBroker) -> None:
    found = await streams_of(broker)
    assert {stream.purpose for stream in found.values()} >= {
        "inboxes",
        "dead letters",
        "how far devices have read",
        "how often handlers have failed",
        "which processes there are",
        "messages to the service orders",
    }
    assert found[broker.subjects.queue("orders")].service == "orders"
    # The channel layer makes its own when it needs them
    assert broker.subjects.stream("chan") not in found


async def test_streams_of_services_that_others_declare(
    broker: NatsBroker, nats_settings: Any
) -> None:
    nats_settings.WSGATEWAY_SERVICES = ["elsewhere"]
    other = broker_from_settings(wsgateway_settings)
    await other.set_up()
    await other.close()
    found = await streams_of(broker)
    assert found[broker.subjects.queue("elsewhere")].purpose == "messages to the service elsewhere"
    assert "elsewhere" in {queue.service for queue in await broker.operations.queues()}


@pytest.mark.timeout(120)
async def test_leader_and_copies_in_a_cluster(
    settings: Any, nats_cluster: Cluster, prefix: str
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = ",".join(nats_cluster.urls)
    settings.WSGATEWAY_PREFIX = prefix
    settings.WSGATEWAY_REPLICAS = 3
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready(60.0)
    inboxes = (await streams_of(broker))[broker.subjects.stream("recv")]
    assert inboxes.replicas == 3
    assert len({inboxes.leader, *(peer.name for peer in inboxes.peers)}) == 3
    assert inboxes.last_error == ""
    await broker.close()


async def test_looking_raises_no_alarm(broker: NatsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look asked for the channel layer's streams, and their absence had all be checked."""
    alarms: list[None] = []
    monkeypatch.setattr(broker.jetstream, "on_missing", lambda: alarms.append(None))
    await broker.operations.streams()
    await broker.operations.queues()
    assert alarms == []
