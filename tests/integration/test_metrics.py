"""Metrics against known traffic, exactly: sockets, services, channel layer, outbox, cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import websockets.exceptions
from channels.exceptions import ChannelFull
from prometheus_client import REGISTRY

from tests.integration.workers import no_services, offer, serving
from tests.scrape import TOKEN, Samples, ask, scrape
from tests.support import Gateway, until, wait_for
from wsgateway import Message, Reject, RetryPolicy, counters, service
from wsgateway.broker import runtime
from wsgateway.broker.memory import MemoryStore
from wsgateway.broker.memory.lease import MemoryLease
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.counters import SAMPLE
from wsgateway.events.signalling import Signalling
from wsgateway.layer import NatsChannelLayer
from wsgateway.metrics.cluster import ask_cluster
from wsgateway.metrics.collector import COLLECTOR
from wsgateway.outbox import enqueue
from wsgateway.outbox.models import OutboxMessage
from wsgateway.outbox.relay import Relay
from wsgateway.protocol.subjects import Inbox
from wsgateway.signals import user_online

__all__ = ["no_services"]

Factory = Callable[..., Gateway]
V1 = "wsgateway.v1"


@pytest.fixture(autouse=True)
def own_counters() -> Iterator[None]:
    """Counters of this process that begin at zero."""
    counters.reset()
    yield
    counters.reset()


def local() -> Samples:
    """Return what this process has counted."""
    return Samples(COLLECTOR.collect())


def settled(port: int, **wanted: float) -> Samples:
    """Return the samples of a page once the sums of these metrics are as *wanted*."""

    def found() -> Samples | None:
        samples = scrape(port)
        return samples if all(samples.get(k) == v for k, v in wanted.items()) else None

    result: Samples = wait_for(found, 20, f"{wanted}")
    return result


# -- sockets -----------------------------------------------------------------------------


class Peer:
    """A client that notes how many frames and bytes went each way."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.sent: list[str | bytes] = []
        self.got: list[str | bytes] = []

    async def send(self, frame: str | bytes) -> None:
        self.sent.append(frame)
        await self.socket.send(frame)

    async def take(self, count: int = 1) -> list[str | bytes]:
        async with asyncio.timeout(20):
            found = [await self.socket.recv() for _ in range(count)]
        self.got += found
        return found


def size(*peers: list[str | bytes]) -> int:
    frames = [frame for each in peers for frame in each]
    return sum(len(each.encode() if isinstance(each, str) else each) for each in frames)


@pytest.fixture
def small_queues(nats_settings: Any) -> dict[str, str]:
    """Let three messages of a user wait; for the gateway, too."""
    nats_settings.WSGATEWAY_SEND_MAX_MESSAGES_PER_USER = 3
    return {"WSGATEWAY_SEND_MAX_MESSAGES_PER_USER": "3"}


async def test_traffic_of_sockets_is_counted_exactly(
    small_queues: dict[str, str], gateway_factory: Factory, broker: NatsBroker
) -> None:
    gateway = gateway_factory(WSGATEWAY_METRICS_TOKEN=TOKEN, **small_queues)
    async with (
        gateway.connect("orders", "ann") as one,
        gateway.connect("orders", "ann") as two,
        gateway.connect("orders", "bob", subprotocols=[V1]) as three,
    ):
        raw, twin, v1 = Peer(one), Peer(two), Peer(three)
        await v1.take()  # its welcome
        for frame in ("größer", b"\x00\x01\xff"):
            await raw.send(frame)
        for number in range(4):  # one more than may wait
            publish = {"type": "message", "id": f"p{number}", "data": "€"}
            await v1.send(json.dumps(publish, ensure_ascii=False))
        answers = [json.loads(each)["type"] for each in await v1.take(4)]
        assert sorted(answers) == ["ack", "ack", "ack", "error"]
        receipts = [
            await broker.publish(Inbox("orders", "ann"), f"m{number}ß".encode())
            for number in range(2 * SAMPLE)
        ]
        await broker.publish(Inbox("orders", "bob"), b"for bob")
        await raw.take(2 * SAMPLE)
        await twin.take(2 * SAMPLE)
        await v1.take()
        samples = await asyncio.to_thread(
            settled, gateway.port, wsgateway_gateway_messages_total=4 * SAMPLE + 1
        )
        zeros = samples.find("wsgateway_gateway_sockets", service="demo")
        assert len(zeros) == 3, "of services without sockets, so that a first one is an increase"
        assert samples.by("wsgateway_gateway_sockets", "service", "protocol") == {
            ("orders", "raw"): 2,
            ("orders", V1): 1,
        }
    samples = await asyncio.to_thread(settled, gateway.port, wsgateway_gateway_sockets=0)
    kinds = "service", "protocol", "direction"
    assert samples.by("wsgateway_gateway_frames_total", *kinds) == {
        ("orders", "raw", "in"): 2,
        ("orders", "raw", "out"): 4 * SAMPLE,
        ("orders", V1, "in"): 4,
        ("orders", V1, "out"): 6,
    }
    assert samples.by("wsgateway_gateway_bytes_total", *kinds) == {
        ("orders", "raw", "in"): size(raw.sent),
        ("orders", "raw", "out"): size(raw.got, twin.got),
        ("orders", V1, "in"): size(v1.sent),
        ("orders", V1, "out"): size(v1.got),
    }
    assert samples.by("wsgateway_gateway_connects_total", *kinds[:2]) == {
        ("orders", "raw"): 2,
        ("orders", V1): 1,
    }
    assert samples.get("wsgateway_gateway_publish_seconds_count") == 5
    assert samples.by("wsgateway_gateway_publish_errors_total", "reason") == {("queue_full",): 1}
    sampled = sum(not receipt.offset % SAMPLE for receipt in receipts)
    assert samples.get("wsgateway_gateway_delivery_lag_seconds_count") == 2 * sampled == 4
    assert 0 <= samples.get("wsgateway_gateway_delivery_lag_seconds_sum") < 10
    assert samples.by("wsgateway_gateway_starts_total", "result") == {("new",): 1}
    assert samples.get("wsgateway_gateway_unconfirmed_total") == 1, "bob confirmed nothing"
    assert samples.get("wsgateway_gateway_gaps_total") == 0
    assert samples.get("wsgateway_broker_connections", state="ready") == 1
    assert samples.get("wsgateway_broker_connects_total") == 1
    name = "wsgateway_gateway_cursor_writes_total"  # ann's is written after her sockets are gone
    await asyncio.to_thread(wait_for, lambda: scrape(gateway.port).get(name, result="ok"), 20)
    assert samples.get(name, result="failed") == 0


async def test_every_end_of_a_socket_is_counted_by_its_code(gateway_factory: Factory) -> None:
    gateway = gateway_factory(WSGATEWAY_METRICS_TOKEN=TOKEN, WSGATEWAY_MAX_MESSAGE_SIZE="100")
    for code in (1000, 3999):
        async with gateway.connect("orders", "ann") as ws:
            await ws.close(code)
    async with gateway.connect("orders", "ann") as ws:
        await ws.send("x" * 101)
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1009, "what a raw client is told; metrics have our own code"
    for service_name, cookies in (("nosuch", "ann"), ("orders", "")):
        headers = {"Cookie": f"service={service_name}; user={cookies}"} if cookies else {}
        connecting = gateway.connect(service_name, "ann", additional_headers=headers)
        async with connecting as ws:
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                await ws.recv()
    samples = await asyncio.to_thread(
        settled, gateway.port, wsgateway_gateway_disconnects_total=3, wsgateway_gateway_sockets=0
    )
    assert samples.by("wsgateway_gateway_disconnects_total", "by", "code") == {
        ("client", "1000"): 1,
        ("client", "other"): 1,
        ("gateway", "4509"): 1,
    }
    assert samples.by("wsgateway_gateway_refused_total", "code") == {("4501",): 1, ("4503",): 1}


async def test_full_window_and_recovery_are_counted(
    gateway_factory: Factory, broker: NatsBroker
) -> None:
    gateway = gateway_factory(WSGATEWAY_METRICS_TOKEN=TOKEN, WSGATEWAY_WINDOW="2")
    ann = Inbox("orders", "ann")
    async with gateway.connect("orders", "ann", subprotocols=[V1]) as ws:
        welcome = json.loads(await ws.recv())
        for number in range(5):
            await broker.publish(ann, f"{number}".encode())
        offsets = [json.loads(await ws.recv())["offset"] for _ in range(2)]
        samples = await asyncio.to_thread(
            settled, gateway.port, wsgateway_gateway_window_stalls_total=1
        )
        fetched = samples.get("wsgateway_gateway_fetched_messages_total")
        await ws.send(json.dumps({"type": "ack", "offset": offsets[-1]}))
        offsets += [json.loads(await ws.recv())["offset"] for _ in range(2)]
    query = f"?epoch={welcome['epoch']}&offset={offsets[-1]}"
    async with gateway.connect("orders", "ann", subprotocols=[V1], query=query) as ws:
        assert json.loads(await ws.recv())["recovered"]
        assert json.loads(await ws.recv())["data"] == "4"
    samples = await asyncio.to_thread(settled, gateway.port, wsgateway_gateway_sockets=0)
    assert samples.get("wsgateway_gateway_fetched_messages_total") == fetched + 3
    assert samples.by("wsgateway_gateway_starts_total", "result") == {
        ("new",): 1,
        ("recovered",): 1,
    }
    assert samples.get("wsgateway_gateway_unconfirmed_total") == 3


# -- services ----------------------------------------------------------------------------


@pytest.fixture
async def work(no_services: None, broker: NatsBroker) -> NatsBroker:
    @service("orders", retry=RetryPolicy(initial=0.01, attempts=2))
    async def handle(message: Message) -> None:
        if message.text == "reject":
            raise Reject("not this one")
        if message.text == "fail" or (message.text == "once" and message.attempt == 1):
            raise ValueError("a handler's bug")

    return broker


async def test_outcomes_of_handlers_are_counted_exactly(work: NatsBroker) -> None:
    async with serving(work) as worker:
        for number, text in enumerate(("good", "fine", "reject", "fail", "once")):
            await offer(work, text, user=f"u{number}")
        await until(lambda: worker.counts.total() == 7, 20)
        samples = local()
    assert samples.by("wsgateway_service_messages_total", "service", "outcome") == {
        ("orders", "done"): 3,
        ("orders", "rejected"): 1,
        ("orders", "retried"): 2,
        ("orders", "dead-lettered"): 1,
    }
    assert samples.get("wsgateway_service_handler_seconds_count", service="orders") == 7
    assert samples.get("wsgateway_service_redeliveries_total", service="orders") == 2
    assert samples.get("wsgateway_service_handlers", service="orders") == 0


# -- the channel layer -------------------------------------------------------------------


@pytest.fixture
async def layer(nats_settings: Any) -> AsyncIterator[NatsChannelLayer]:
    layer = NatsChannelLayer(capacity=2, expiry=60)
    yield layer
    await layer.close()


async def test_messages_of_the_channel_layer_are_counted_exactly(layer: NatsChannelLayer) -> None:
    channel = await layer.new_channel()
    message = {"type": "test"}
    for _ in range(2):
        await layer.send(channel, message)
    with pytest.raises(ChannelFull):
        await layer.send(channel, message)
    for _ in range(2):
        await layer.receive(channel)
    await layer.send("normal", message)
    assert await layer.receive("normal") == message
    await layer.group_add("lobby", channel)
    for _ in range(5):  # two fit
        await layer.group_send("lobby", message)
    await until(lambda: counters.layer.dropped_full == 3)
    await layer.group_send("orders.ann", message)
    samples = local()
    assert samples.by("wsgateway_layer_sent_total", "kind") == {
        ("specific",): 2,
        ("normal",): 1,
        ("group",): 5,
        ("durable",): 1,
    }
    assert samples.get("wsgateway_layer_received_total") == 3
    assert samples.get("wsgateway_layer_channel_full_total") == 1
    assert samples.by("wsgateway_layer_dropped_total", "reason") == {("full",): 3}


async def test_what_synchronous_code_sends_is_counted_too(layer: NatsChannelLayer) -> None:
    message = {"type": "test"}
    channel = await layer.new_channel()
    await layer.group_send("lobby", message)

    def send() -> None:
        layer.group_send_sync("lobby", message)
        layer.send_sync(channel, message)
        layer.send_sync("normal", message)

    await asyncio.to_thread(send)
    assert local().by("wsgateway_layer_sent_total", "kind") == {
        ("specific",): 1,
        ("normal",): 1,
        ("group",): 2,
    }


# -- events ------------------------------------------------------------------------------


async def test_signals_are_counted_by_what_became_of_them() -> None:
    lease = MemoryLease(MemoryStore(), "events", "here")
    await lease.renew()
    signalling = Signalling(lease)
    signalling.start()

    def receive(user: str, **kwargs: Any) -> None:
        if user == "bob":
            raise ValueError("a receiver's bug")

    user_online.connect(receive)
    try:
        for user in ("ann", "bob", "eve"):
            signalling.send(user_online, Inbox("orders", user))
        await signalling.stop(20.0)
    finally:
        user_online.disconnect(receive)
    found = local().by("wsgateway_events_signals_total", "outcome")
    assert found == {("sent",): 2, ("failed",): 1}


# -- the outbox and the cluster ----------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_rows_of_the_outbox_are_counted_exactly(nats_settings: Any) -> None:
    for number in range(3):
        enqueue("orders", "ann", text=f"{number}")
    bad = enqueue("orders", "bob", text="bad")
    OutboxMessage.objects.filter(pk=bad.pk).update(headers={"a": "line\nbreak"})
    before = Samples(ask_cluster())
    assert before.by("wsgateway_outbox_rows", "database", "state") == {("default", "waiting"): 4}
    assert 0 < before.get("wsgateway_outbox_age_seconds", database="default") < 60
    Relay().step()
    after = Samples([*ask_cluster(), *COLLECTOR.collect()])
    assert after.by("wsgateway_outbox_rows", "database", "state") == {("default", "failed"): 1}
    assert after.get("wsgateway_outbox_age_seconds") == 0
    assert after.get("wsgateway_outbox_relayed_total") == 3
    assert after.get("wsgateway_outbox_set_aside_total") == 1
    assert after.get("wsgateway_outbox_relay_seconds_count") == 3


async def test_queues_and_streams_are_measured_where_they_are(
    nats_settings: Any, broker: NatsBroker
) -> None:
    """From any process that is asked, also one that handles nothing."""
    for number in range(3):
        await offer(broker, f"{number}")
    samples = Samples(await asyncio.to_thread(ask_cluster))
    assert samples.get("wsgateway_cluster_up", source="broker") == 1
    assert samples.by("wsgateway_queue_messages", "service") == {("orders",): 3}
    assert samples.get("wsgateway_queue_in_flight", service="orders") == 0
    assert 0 <= samples.get("wsgateway_queue_age_seconds", service="orders") < 60
    stream = broker.subjects.queue("orders")
    assert samples.get("wsgateway_stream_messages", stream=stream) == 3
    limit = samples.get("wsgateway_stream_limit_messages", stream=stream)
    assert limit == 1_000_000
    assert samples.get("wsgateway_stream_healthy", stream=stream) == 1


async def test_queues_are_measured_in_memory_too() -> None:
    connection = runtime.own()
    await connection.open()
    await offer(connection.broker, "hello")
    samples = Samples(await asyncio.to_thread(ask_cluster))
    assert samples.get("wsgateway_cluster_up", source="broker") == 1
    assert samples.by("wsgateway_queue_messages", "service") == {("orders",): 1}
    await connection.close()


def test_what_does_not_answer_is_missing_and_said_to_be(
    settings: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An old number, or a zero, would be taken for the truth."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    samples = Samples(ask_cluster())
    assert samples.get("wsgateway_cluster_up", source="broker") == 0
    assert samples.get("wsgateway_cluster_up", source="outbox") == 0, "the test has no database"
    assert not samples.find("wsgateway_queue_messages")
    assert not samples.find("wsgateway_outbox_rows")
    ask_cluster()  # the log says it once, not at each scrape
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert sum("metrics leave out the broker" in text for text in told) == 1


# -- who may see them --------------------------------------------------------------------


def test_site_without_a_setting_has_no_page(gateway: Gateway) -> None:
    status, _, text = ask(gateway.port)
    assert status == 404
    assert "WSGATEWAY_METRICS_TOKEN" in text


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_token_opens_the_page_and_nothing_else_does(gateway_factory: Factory, server: str) -> None:
    gateway = gateway_factory(server, WSGATEWAY_METRICS_TOKEN=TOKEN)
    for header in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", "é"):
        status, _, text = ask(gateway.port, Authorization=header)
        assert (status, "WSGATEWAY_METRICS_TOKEN" in text) == (401, True), header
        assert TOKEN not in text
    status, kind, text = ask(gateway.port, Authorization=f"Bearer {TOKEN}")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert "wsgateway_info" in text
    assert "process_resident_memory_bytes" in text
    accept = "application/openmetrics-text; version=1.0.0"
    status, kind, text = ask(gateway.port, Authorization=f"Bearer {TOKEN}", Accept=accept)
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_network_opens_the_page_only_without_a_proxy(gateway_factory: Factory) -> None:
    """Whatever a proxy says about its client, the client may have written itself."""
    near = gateway_factory(WSGATEWAY_METRICS_NETWORKS="10.0.0.0/8,127.0.0.0/8")
    assert ask(near.port)[0] == 200
    status, _, text = ask(near.port, X_Forwarded_Proto="https")
    assert (status, "proxy" in text) == (403, True)
    far = gateway_factory(WSGATEWAY_METRICS_NETWORKS="10.0.0.0/8")
    status, _, text = ask(far.port)
    assert (status, "127.0.0.1 is not in WSGATEWAY_METRICS_NETWORKS" in text) == (403, True)


def test_workers_of_one_server_answer_for_all(gateway_factory: Factory) -> None:
    """Any of them may get the request, and each knew only its own sockets."""
    gateway = gateway_factory("uvicorn --workers 2", WSGATEWAY_METRICS_TOKEN=TOKEN)

    def processes() -> set[str]:
        return {labels["process"] for labels, _ in scrape(gateway.port).find("wsgateway_info")}

    wait_for(lambda: len(processes()) == 2, 30, "both workers have had a connection")
    gateway.stop()  # SIGKILL would leave the workers behind


def test_own_registry_is_part_of_the_page_and_ours_of_it() -> None:
    from wsgateway.metrics.collector import register

    register()
    register()
    names = {family.name for family in REGISTRY.collect()}
    assert {"wsgateway_info", "process_cpu_seconds", "python_info"} <= names


async def test_services_that_clients_make_up_share_one_label(gateway_factory: Factory) -> None:
    """In the open mode, each name was a label of its own: as many series as a client liked."""
    gateway = gateway_factory(WSGATEWAY_METRICS_TOKEN=TOKEN, WSGATEWAY_SERVICES="*")
    for number in range(3):
        async with gateway.connect(f"made-up-{number}", "ann"):
            pass
    samples = await asyncio.to_thread(
        settled, gateway.port, wsgateway_gateway_connects_total=3, wsgateway_gateway_sockets=0
    )
    assert samples.by("wsgateway_gateway_connects_total", "service") == {("*",): 3}
