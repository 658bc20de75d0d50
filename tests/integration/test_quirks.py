"""Canaries for the private details of nats-py that `wsgateway.broker.nats.quirks` leans on.

If one fails after an upgrade of nats-py: do not release with that version. Read the detail's new
form in ``nats/aio/client.py``, change `DirectClient`, and only then raise the limit in
``pyproject.toml``. Each message says which part of `DirectClient` rests on the detail.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client
from nats.protocol.parser import Parser

from tests.support import until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.quirks import DirectClient, Handler


def changed(detail: str, use: str) -> str:
    return f"nats-py changed {detail}; DirectClient.{use} rests on it, see quirks.py and change it"


@pytest.fixture
def handlers() -> dict[int, Handler]:
    return {}


@pytest.fixture
async def client(
    nats_server: EmbeddedServer, handlers: dict[int, Handler]
) -> AsyncIterator[DirectClient]:
    client = DirectClient(handlers)
    await client.connect(servers=[nats_server.url], allow_reconnect=False)
    reading, flushing = client._reading_task, client._flusher_task
    yield client
    client.abandon()
    await asyncio.wait({task for task in (reading, flushing) if task is not None}, timeout=5)


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (Client, "_process_msg", ["self", "sid", "subject", "reply", "data", "headers"]),
        (Client, "_process_pong", ["self"]),
    ],
)
def test_methods_that_are_replaced_keep_their_form(
    owner: type, name: str, parameters: list[str]
) -> None:
    method = getattr(owner, name, None)
    assert method is not None, changed(f"{name}, which is gone,", name)
    assert inspect.iscoroutinefunction(method), changed(f"{name} to a plain function", name)
    assert list(inspect.signature(method).parameters) == parameters, changed(name, name)
    source = inspect.getsource(Parser)
    assert f"self.nc.{name}(" in source, changed(f"the parser's call of {name}", name)


@pytest.mark.parametrize(
    ("name", "kind", "use"),
    [
        ("_pending", list, "write"),
        ("_pending_data_size", int, "write, buffered"),
        ("_flush_queue", asyncio.Queue, "write"),
        ("_pongs", list, "ping, _process_pong"),
        ("_pings_outstanding", int, "_process_pong"),
        ("_server_info", dict, "server_info"),
        ("_reading_task", asyncio.Task, "on_read_end, abandon"),
        ("_flusher_task", asyncio.Task, "abandon"),
        ("_ping_interval_task", asyncio.Task, "abandon"),
        ("_status", int, "abandon"),
    ],
)
async def test_attributes_are_there(client: DirectClient, name: str, kind: type, use: str) -> None:
    assert isinstance(getattr(client, name, None), kind), changed(name, use)


async def test_transport_has_a_writer_with_a_socket(client: DirectClient) -> None:
    writer = getattr(client._transport, "_io_writer", None)
    assert isinstance(writer, asyncio.StreamWriter), changed(
        "Transport._io_writer", "abandon, close_inherited"
    )
    sock = writer.transport.get_extra_info("socket")
    assert sock is not None, changed("the transport's socket", "close_inherited")
    assert hasattr(getattr(sock, "_sock", sock), "close")


async def test_written_commands_go_out_in_order_and_the_buffer_empties(
    client: DirectClient, handlers: dict[int, Handler]
) -> None:
    seen: list[tuple[bytes, bytes, bytes, bytes | None]] = []
    handlers[1] = lambda *message: seen.append(message)
    raw = hdrs.encode({"A": "b"})
    client.write(b"SUB quirks.> 1\r\n")
    for number in range(100):
        client.write(b"PUB quirks.a re.ply 2\r\n%02d\r\n" % number)
    client.write(b"HPUB quirks.b %d %d\r\n" % (len(raw), len(raw) + 1) + raw + b"x\r\n")
    assert client.buffered > 0, changed("_pending_data_size", "write, buffered")
    assert await client.ping(10), changed("the flusher", "write, ping")
    assert [data for _, _, data, _ in seen[:100]] == [b"%02d" % number for number in range(100)]
    assert seen[0] == (b"quirks.a", b"re.ply", b"00", None), changed(
        "what the parser hands over", "_process_msg"
    )
    assert seen[100] == (b"quirks.b", b"", b"x", raw), changed("raw headers", "_process_msg")
    assert client.buffered == 0, changed("_pending_data_size", "buffered")


async def test_failing_handler_and_unknown_subscription_do_not_end_the_read_loop(
    client: DirectClient, handlers: dict[int, Handler], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("handler's mistake")

    handlers[1] = fail
    client.write(b"SUB quirks.f 1\r\nSUB quirks.f 2\r\nPUB quirks.f 1\r\nx\r\n")
    assert await client.ping(10)
    assert "a handler failed for a message on quirks.f" in caplog.text
    assert await client.ping(10), changed("the read loop", "_process_msg")


async def test_pong_nobody_waits_for_does_not_end_the_read_loop(client: DirectClient) -> None:
    """nats-py 2.16 itself sets the result of a cancelled future and stops reading for ever."""
    for _ in range(3):
        assert not await client.ping(0)
    for pong in client._pongs:
        pong.cancel()
    assert await client.ping(10), changed("_pongs", "_process_pong")
    assert client._pongs == []
    assert client._reading_task is not None
    assert not client._reading_task.done()


async def test_plain_client_still_dies_of_it(nats_server: EmbeddedServer) -> None:
    """When this fails, nats-py is cured, and `DirectClient._process_pong` may go."""
    client = Client()
    await client.connect(servers=[nats_server.url], allow_reconnect=False)
    reading, others = client._reading_task, [client._flusher_task, client._ping_interval_task]
    assert reading is not None
    try:
        gone = asyncio.get_running_loop().create_future()
        await client._send_ping(gone)
        gone.cancel()
        await until(reading.done, what="the read loop ends")
    finally:
        DirectClient.abandon(client)  # type: ignore[arg-type]
        await asyncio.wait({task for task in others if task is not None}, timeout=5)


async def test_end_of_the_read_loop_is_noticed(own_server: EmbeddedServer) -> None:
    client = DirectClient({})
    await client.connect(servers=[own_server.url], allow_reconnect=False)
    flushing = client._flusher_task
    ended = asyncio.Event()
    client.on_read_end(ended.set)
    await asyncio.to_thread(own_server.kill)
    async with asyncio.timeout(20):
        await ended.wait()
    assert not await client.ping(0.05)
    client.abandon()
    assert flushing is not None
    await asyncio.wait({flushing}, timeout=5)


async def test_abandon_does_not_wait_for_a_server_that_stopped_reading(
    own_server: EmbeddedServer,
) -> None:
    client = DirectClient({})
    await client.connect(servers=[own_server.url], allow_reconnect=False)
    tasks = {client._reading_task, client._flusher_task, client._ping_interval_task}
    own_server.pause()
    try:
        for _ in range(40):
            client.write(b"PUB x 1000000\r\n" + bytes(1_000_000) + b"\r\n")
        await asyncio.sleep(0.05)
        client.abandon()
        _, pending = await asyncio.wait({t for t in tasks if t is not None}, timeout=10)
        assert not pending, changed("how its tasks end", "abandon")
    finally:
        own_server.resume()


async def test_server_info_is_what_the_server_said(
    client: DirectClient, nats_server: EmbeddedServer
) -> None:
    info = client.server_info
    assert info["server_name"] == nats_server.name
    assert info["jetstream"] is True
    assert isinstance(info["max_payload"], int)
    assert str(info["version"]).count(".") >= 2
    assert client.discovered_servers == []
