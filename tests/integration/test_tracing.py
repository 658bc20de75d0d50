"""One trace from the client to the reply: names, parents, links and attributes of its spans."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from tests.integration.backends import HELLO, Caller, api_memory
from tests.integration.workers import no_services, offer, serving
from tests.support import ROOT, Gateway, until
from wsgateway import Message, Reject, RetryPolicy, asend, asend_many, send, tracing
from wsgateway.broker import runtime
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.client import connect
from wsgateway.exceptions import QueueFull, ServiceUnknown
from wsgateway.layer import NatsChannelLayer
from wsgateway.outbox import enqueue
from wsgateway.outbox.relay import Relay
from wsgateway.outgoing import Outgoing
from wsgateway.protocol.subjects import Inbox
from wsgateway.routing import websocket_urlpatterns
from wsgateway.services import registry

__all__ = ["api_memory", "no_services"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_services")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = int(PARENT[3:35], 16), int(PARENT[36:52], 16)
ANN = Inbox("orders", "ann")


@pytest.fixture(autouse=True)
def no_tracer_left() -> Iterator[None]:
    yield
    tracing.forget_tracer()


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def __call__(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        [found] = [span for span in self() if span.name == name]
        return found

    @property
    def names(self) -> list[str]:
        return sorted(span.name for span in self())


def use(provider: TracerProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the provider for this test; OpenTelemetry itself takes only one in a process."""
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    tracing.forget_tracer()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    spans, provider = Spans(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans.exporter))
    use(provider, monkeypatch)
    yield spans
    provider.shutdown()


@asynccontextmanager
async def socket(
    *subprotocols: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
    wrap: Callable[[Any], Any] = lambda app: app,
) -> AsyncIterator[WebsocketCommunicator]:
    """A socket of ann's at the service orders, in this process."""
    client = WebsocketCommunicator(
        wrap(URLRouter(websocket_urlpatterns)),
        "/ws/orders/",
        headers=[(b"cookie", b"user=ann"), *headers],
        subprotocols=list(subprotocols),
    )
    assert (await client.connect(timeout=20))[0]
    yield client
    await client.disconnect()


@asynccontextmanager
async def v1(**options: Any) -> AsyncIterator[WebsocketCommunicator]:
    async with socket("wsgateway.v1", **options) as client:
        assert (await client.receive_json_from(20))["type"] == "welcome"
        yield client


async def publish(client: WebsocketCommunicator, **fields: Any) -> None:
    """Send a message and wait until it is stored."""
    await client.send_json_to({"type": "message", "id": "m1", "data": "hello", **fields})
    assert await client.receive_json_from(20) == {"type": "ack", "id": "m1"}


@pytest.fixture
def ours(nats_settings: Any) -> Iterator[Any]:
    nats_settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.CookieIdentity"]
    yield nats_settings
    runtime.stop_background()


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def own(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_one_trace_from_the_client_to_the_reply(
    ours: Any, broker: NatsBroker, prefix: str, spans: Spans, kind: str
) -> None:
    if kind == "async":

        @registry.service("orders")
        async def handle(message: Message) -> None:
            await message.reply(text="world!")
    else:

        @registry.service("orders")
        def handle_sync(message: Any) -> None:
            message.reply(text="world!")

    async with v1() as client, serving(broker):
        await publish(client, request=True, traceparent=PARENT, tracestate="a=b")
        reply = await client.receive_json_from(20)
        assert (reply["data"], reply["reply_to"]) == ("world!", "m1")
    await until(lambda: len(spans()) == 4, what="spans")
    sent = spans.named(f"send {prefix}.send.orders.{{user}}")
    handled = spans.named(f"process {prefix}.send.orders.{{user}}")
    replied = spans.named(f"send {prefix}.recv.orders.{{user}}")
    delivered = spans.named(f"deliver {prefix}.recv.orders.{{user}}")
    assert {own(span)[0] for span in spans()} == {TRACE}
    assert parent_of(sent) == (TRACE, SPAN)
    assert parent_of(handled) == own(sent)
    assert links(handled) == [own(sent)]
    assert parent_of(replied) == own(handled)
    assert parent_of(delivered) == own(replied)
    assert links(delivered) == [own(replied)]
    kinds = [span.kind for span in (sent, handled, replied, delivered)]
    assert kinds == 2 * [SpanKind.PRODUCER, SpanKind.CONSUMER]
    assert {span.status.status_code for span in spans()} == {StatusCode.UNSET}
    assert sent.context is not None
    assert sent.context.trace_state.to_header() == "a=b"
    address = {
        "server.address": "127.0.0.1",
        "server.port": broker.connection.servers.configured[0].port,
    }
    connection = attributes(sent)["wsgateway.connection"]
    common = {
        **address,
        "messaging.system": "nats",
        "messaging.destination.name": f"{prefix}.send.orders.ann",
        "messaging.destination.template": f"{prefix}.send.orders.{{user}}",
        "messaging.message.body.size": 5,
        "messaging.message.id": "orders.ann:m1",
        "messaging.message.conversation_id": "m1",
        "wsgateway.connection": connection,
    }
    assert attributes(sent) == {
        **common,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }
    assert attributes(handled) == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "service-orders",
        "wsgateway.attempt": 1,
    }
    found = attributes(delivered)
    assert found["messaging.operation.name"] == "deliver"
    assert found["messaging.operation.type"] == "process"
    assert (found["wsgateway.connection"], found["wsgateway.offset"]) == (connection, 1)
    found = attributes(replied)
    assert found.pop("messaging.message.id").startswith("reply.")
    assert found == {
        **address,
        "messaging.system": "nats",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": f"{prefix}.recv.orders.ann",
        "messaging.destination.template": f"{prefix}.recv.orders.{{user}}",
        "messaging.message.body.size": 6,
        "messaging.message.conversation_id": "m1",
    }


async def test_each_message_of_a_raw_socket_has_a_trace_with_a_link_to_the_handshake(
    ours: Any, spans: Spans, broker: NatsBroker
) -> None:
    """A socket may be open for days: as children of its handshake, all would be one trace."""
    headers = [(b"traceparent", PARENT.encode())]
    async with socket(headers=headers) as client:
        for text in ("a", "b"):
            await client.send_to(text)
        await until(lambda: len(spans()) == 2, what="spans")
    assert [parent_of(span) for span in spans()] == [None, None]
    assert [links(span) for span in spans()] == 2 * [[(TRACE, SPAN)]]
    assert len({own(span)[0] for span in spans()} | {TRACE}) == 3


async def test_span_of_an_asgi_instrumentation_is_linked_not_continued(
    ours: Any, spans: Spans, broker: NatsBroker
) -> None:
    tracer = trace.get_tracer_provider().get_tracer("asgi")

    def instrumented(app: Any) -> Any:
        async def serve(*args: Any) -> None:
            with tracer.start_as_current_span("GET /ws/"):
                await app(*args)

        return serve

    async with v1(wrap=instrumented) as client:
        await publish(client)
    [sent] = [span for span in spans() if span.name.startswith("send")]
    assert parent_of(sent) is None
    assert links(sent) == [own(spans.named("GET /ws/"))]


async def test_clients_that_are_not_trusted_get_a_link(
    ours: Any, spans: Spans, broker: NatsBroker
) -> None:
    """A client could have every message of its traced, whatever the sampler says."""
    ours.WSGATEWAY_CONTINUE_TRACES = False
    async with v1() as client:
        await publish(client, traceparent=PARENT)
    [span] = spans()
    assert parent_of(span) is None
    assert links(span) == [(TRACE, SPAN)]


@pytest.mark.parametrize(
    "given",
    ["", "00-1", PARENT + "-x", PARENT.upper(), "ff" + PARENT[2:], f"00-{'0' * 32}-{'1' * 16}-01"],
)
async def test_malformed_trace_context_is_ignored(
    ours: Any, spans: Spans, broker: NatsBroker, given: str
) -> None:
    async with v1() as client:
        await publish(client, traceparent=given, tracestate="a\r\nNats-Rollup: all")
    [span] = spans()
    assert (parent_of(span), links(span)) == (None, [])


async def test_refused_message_ends_its_span_with_the_error(
    ours: Any, spans: Spans, broker: NatsBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_exception(QueueFull("no room"))
        return answer

    monkeypatch.setattr(NatsBroker, "offer", refuse)
    async with v1() as client:
        await client.send_json_to({"type": "message", "id": "m1", "data": "hello"})
        assert (await client.receive_json_from(20))["code"] == "queue_full"
    [span] = spans()
    assert attributes(span)["error.type"] == "wsgateway.exceptions.QueueFull"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no room")


async def test_each_try_is_a_span_and_the_notice_belongs_to_the_trace(
    broker: NatsBroker, prefix: str, spans: Spans
) -> None:
    @registry.service("orders", retry=RetryPolicy(initial=0.01, cap=0.01, attempts=2))
    async def handle(message: Message) -> None:
        if message.text == "reject":
            raise Reject("not so", code="wrong")
        raise OSError("disk\nfull")

    for text in ("reject", "fail"):
        await offer(broker, text, text, Ws_Client_Id="c", Traceparent=PARENT)  # as Go writes it
    async with serving(broker) as worker:
        await until(lambda: worker.counts["dead-lettered"] + worker.counts["rejected"] == 2)
    process = f"process {prefix}.send.orders.{{user}}"
    notices = [span for span in spans() if span.name == f"send {prefix}.recv.orders.{{user}}"]
    assert [parent_of(span) for span in notices] == 2 * [(TRACE, SPAN)]
    handled = [span for span in spans() if span.name == process]
    assert {parent_of(span) for span in handled} == {(TRACE, SPAN)}
    [rejected] = [span for span in handled if "wsgateway.rejected" in attributes(span)]
    assert attributes(rejected)["wsgateway.rejected"] == "wrong"
    assert rejected.status.status_code is StatusCode.UNSET
    failed = [span for span in handled if span is not rejected]
    assert [attributes(span)["wsgateway.attempt"] for span in failed] == [1, 2]
    assert {attributes(span)["error.type"] for span in failed} == {"OSError"}
    assert {span.status.description for span in failed} == {"disk full"}


async def test_sending_continues_the_current_span(
    ours: Any, broker: NatsBroker, prefix: str, spans: Spans
) -> None:
    tracer = trace.get_tracer_provider().get_tracer("shop")
    layer = NatsChannelLayer()
    with tracer.start_as_current_span("view") as view:
        token = context.attach(baggage.set_baggage("tenant", "7"))
        await asend("orders", "ann", text="a", msg_id="one")
        await asyncio.to_thread(send, "orders", "ann", text="b")
        await asend_many([Outgoing("orders", "ann", text="c")])
        await layer.group_send("orders.ann", {"type": "ws.message", "text": "d"})
        context.detach(token)
    await layer.close()
    await until(lambda: len(spans()) == 5, what="spans")
    here = view.get_span_context()
    sent = [span for span in spans() if span.name != "view"]
    assert {span.name for span in sent} == {f"send {prefix}.recv.orders.{{user}}"}
    assert {parent_of(span) for span in sent} == {(here.trace_id, here.span_id)}
    stored = await stored_headers(broker, prefix)
    assert [each["traceparent"].split("-")[1:3] for each in stored] == [
        [f"{trace_id:032x}", f"{span_id:016x}"] for trace_id, span_id in map(own, sent)
    ]
    assert [each["baggage"] for each in stored] == 4 * ["tenant=7"]


async def stored_headers(broker: NatsBroker, prefix: str) -> list[dict[str, str]]:
    request = {"seq": 1, "next_by_subj": f"{prefix}.recv.orders.ann", "batch": 10}
    batch = await broker.jetstream.direct(broker.subjects.stream("recv"), request)
    found = []
    for reply in batch.replies:
        lines = (reply.headers or b"").decode().splitlines()[1:]
        pairs = [line.partition(": ") for line in lines if line]
        found.append({name: value for name, _, value in pairs})
    return found


async def test_context_that_a_caller_gives_is_kept_and_linked(
    ours: Any, broker: NatsBroker, prefix: str, spans: Spans
) -> None:
    await asend("orders", "ann", text="a", headers={"traceparent": PARENT})
    [span] = spans()
    assert (parent_of(span), links(span)) == (None, [(TRACE, SPAN)])
    [headers] = await stored_headers(broker, prefix)
    assert headers["traceparent"] == PARENT


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.api_site.urls")
@pytest.mark.usefixtures("api_memory")
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("instrumented", [False, True])
def test_message_of_the_server_api_continues_the_trace_of_its_request(
    settings: Any, spans: Spans, batch: bool, instrumented: bool
) -> None:
    settings.PUBSUB_BROKER = "memory"
    caller = Caller("publish")
    body = {"messages": [HELLO]} if batch else HELLO
    tracer = trace.get_tracer_provider().get_tracer("django")
    request = tracer.start_as_current_span("request") if instrumented else nullcontext()
    with request as view:
        response = caller.post("publish-many" if batch else "publish", body, traceparent=PARENT)
    assert response.status_code == 200
    sent = spans.named("send ws.recv.orders.{user}")
    found = view.get_span_context() if view else None
    assert parent_of(sent) == ((found.trace_id, found.span_id) if found else (TRACE, SPAN))


@pytest.mark.django_db(transaction=True)
def test_outbox_keeps_the_context_in_which_a_message_was_written(
    settings: Any, spans: Spans
) -> None:
    """Otherwise what handles it would belong to the relay's trace, or to none."""
    settings.PUBSUB_BROKER = "memory"
    tracer = trace.get_tracer_provider().get_tracer("shop")
    with tracer.start_as_current_span("view") as view:
        row = enqueue("orders", "ann", text="x", headers={"tenant": "7"})
    here = view.get_span_context()
    assert row.headers["tenant"] == "7"
    assert row.headers["traceparent"][:52] == f"00-{here.trace_id:032x}-{here.span_id:016x}"
    assert Relay().step() == 1
    sent = spans.named("send ws.recv.orders.{user}")
    assert (parent_of(sent), links(sent)) == (None, [(here.trace_id, here.span_id)])


async def test_failed_send_is_a_failed_span(ours: Any, spans: Spans, broker: NatsBroker) -> None:
    with pytest.raises(ServiceUnknown):
        await asend("nothing", "ann", text="a")
    [span] = spans()
    assert attributes(span)["error.type"] == "wsgateway.exceptions.ServiceUnknown"
    assert span.status.status_code is StatusCode.ERROR


async def test_names_of_services_that_clients_make_up_are_no_names_of_spans(
    settings: Any, spans: Spans, no_services: None
) -> None:
    settings.PUBSUB_BROKER = "memory"
    settings.WSGATEWAY_SERVICES = ["*"]
    await asend("made-up", "ann", text="a")
    [span] = spans()
    assert span.name == "send ws.recv.{service}.{user}"
    assert attributes(span)["messaging.system"] == "memory"
    assert attributes(span)["messaging.destination.name"] == "ws.recv.made-up.ann"
    await runtime.current().close()


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_delivery_of_what_waited_is_a_span_if_it_is_sampled(
    ours: Any, broker: NatsBroker, prefix: str, spans: Spans, flags: str
) -> None:
    await broker.publish(ANN, b"a", headers={"traceparent": PARENT[:-2] + flags})
    await broker.publish(ANN, b"another")
    spans.exporter.clear()
    async with v1() as client:
        assert [(await client.receive_json_from(20))["data"] for _ in range(2)] == ["a", "another"]
    parents = [parent_of(span) for span in spans() if span.name.startswith("deliver")]
    assert parents.count((TRACE, SPAN)) == (1 if flags == "01" else 0)
    assert len(parents) == (2 if flags == "01" else 1), "the other has a trace of its own"


async def test_unsampled_trace_is_passed_on(
    ours: Any, broker: NatsBroker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    use(provider, monkeypatch)
    await asend("orders", "ann", text="a")
    [headers] = await stored_headers(broker, prefix)
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[02]", headers["traceparent"])


@pytest.mark.parametrize("continues", [True, False])
async def test_without_a_provider_headers_stay_as_they_are(
    ours: Any, broker: NatsBroker, prefix: str, continues: bool
) -> None:
    ours.WSGATEWAY_CONTINUE_TRACES = continues
    jobs: list[dict[str, str]] = []

    @registry.service("orders")
    async def handle(message: Message) -> None:
        jobs.append(dict(message.headers))
        await message.reply(text="x")

    async with v1() as client, serving(broker):
        await publish(client, traceparent=PARENT)
        await until(lambda: len(jobs) == 1)
    await asend("orders", "ann", text="a")
    # The gateway passes on what it does not trace itself, unless clients are not trusted
    assert jobs[0].get("traceparent") == (PARENT if continues else None)
    assert all("traceparent" not in each for each in await stored_headers(broker, prefix))


async def test_python_client_and_a_gateway_process(
    gateway_factory: Callable[..., Gateway],
    ours: Any,
    prefix: str,
    broker: NatsBroker,
    spans: Spans,
) -> None:
    """The client's program, the gateway and the worker trace; the gateway in its own process."""

    @registry.service("orders")
    async def handle(message: Message) -> None:
        await message.reply(text="world")

    gateway = gateway_factory(application="tests.traced_app:application")
    tracer = trace.get_tracer_provider().get_tracer("app")
    url = gateway.ws("/ws/orders/")
    headers = {"Cookie": "user=ann"}
    async with serving(broker), connect(url, additional_headers=headers) as client:
        with tracer.start_as_current_span("buy") as buy:
            assert (await client.request("hello")).data == "world"
    await until(lambda: len(spans()) == 3 and "SPAN " in gateway.output, what="spans")
    lines = [line for line in gateway.output.splitlines() if line.startswith("SPAN ")]
    found = [json.loads(line.removeprefix("SPAN ")) for line in lines]
    [sent] = [span for span in found if span["name"].startswith("send ")]
    here = buy.get_span_context()
    assert sent["name"] == f"send {prefix}.send.orders.{{user}}"
    assert sent["kind"] == "SpanKind.PRODUCER"
    assert int(sent["context"]["trace_id"], 16) == here.trace_id
    assert int(sent["parent_id"], 16) == here.span_id
    handled = spans.named(f"process {prefix}.send.orders.{{user}}")
    assert parent_of(handled) == (here.trace_id, int(sent["context"]["span_id"], 16))
    assert parent_of(spans.named(f"send {prefix}.recv.orders.{{user}}")) == own(handled)


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())

import os
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
import django
django.setup()

import asyncio
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator
from django.conf import settings
from wsgateway import asend, declared, tracing
from wsgateway.broker import runtime
from wsgateway.routing import websocket_urlpatterns
from wsgateway.services import registry
from wsgateway.services.worker import Worker
import wsgateway.client

settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.CookieIdentity"]
declared.discover()
declared.registered.clear()

@registry.service("orders")
async def handle(message):
    await message.reply(text=f"{message.text} world")

async def main():
    worker = Worker(declared.registered["orders"], runtime.own().broker)
    await runtime.own().open()
    worker.start()
    router = URLRouter(websocket_urlpatterns)
    client = WebsocketCommunicator(
        router, "/ws/orders/", headers=[(b"cookie", b"user=ann")], subprotocols=["wsgateway.v1"]
    )
    await client.connect()
    await client.receive_json_from(20)
    await client.send_json_to({"type": "message", "id": "1", "data": "hello"})
    await client.receive_json_from(20)
    print((await client.receive_json_from(20))["data"])
    await asend("orders", "ann", text="bye")
    print((await client.receive_json_from(20))["data"])
    await client.disconnect()
    await worker.stop(5)

asyncio.run(main())
print(tracing.find_tracer(), [name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_everything_works_without_the_package() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["hello world", "bye", "None []"], done.stderr
