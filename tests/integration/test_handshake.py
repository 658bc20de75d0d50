"""Canaries for the private details of nats-py that `wsgateway.broker.nats.handshake` leans on.

If one fails after an upgrade of nats-py: do not release with that version. Read the detail's new
form in ``nats/aio/client.py``, change `DirectClient`, and only then raise the limit in
``pyproject.toml``. Each message says which part of `DirectClient` rests on the detail.
"""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client
from nats.protocol.parser import Parser

from tests.support import ROOT, site_env, until
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings, versions
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.handshake import DirectClient
from wsgateway.broker.nats.reader import Handler, Reader
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerMisconfigured


def changed(detail: str, use: str) -> str:
    return (
        f"nats-py changed {detail}; DirectClient.{use} rests on it, see handshake.py and change it"
    )


@pytest.fixture
def handlers() -> dict[int, Handler]:
    return {}


@pytest.fixture
async def client(
    nats_server: EmbeddedServer, handlers: dict[int, Handler]
) -> AsyncIterator[DirectClient]:
    client = DirectClient(handlers)
    await client.connect(servers=[nats_server.url], allow_reconnect=False)
    yield client
    client.abandon()
    await until(client.has_ended, what="the connection ends")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_process_info", ["self", "info", "initial_connection"]),
    ],
)
def test_methods_that_are_replaced_keep_their_form(name: str, parameters: list[str]) -> None:
    method = getattr(Client, name, None)
    assert method is not None, changed(f"{name}, which is gone,", name)
    assert inspect.iscoroutinefunction(method), changed(f"{name} to a plain function", name)
    assert list(inspect.signature(method).parameters) == parameters, changed(name, name)


def test_first_info_is_taken_before_anything_is_sent() -> None:
    """That is where a server without TLS is refused."""
    source = inspect.getsource(Client._process_connect_init)
    steps = ["self._server_info = srv_info", "self._process_info(srv_info", "connect_tls("]
    steps += ["self._connect_command()"]
    places = [source.rfind(step) for step in steps]
    assert -1 not in places, changed("_process_connect_init", "_process_info")
    assert places == sorted(places), changed("_process_connect_init", "_process_info")


@pytest.mark.parametrize(
    ("name", "kind", "use"),
    [
        ("_server_info", dict, "server_info"),
        ("_reading_task", asyncio.Task, "connect"),
        ("_flusher_task", asyncio.Task, "connect"),
        ("_ping_interval_task", asyncio.Task, "connect"),
        ("_ps", Parser, "connect"),
        ("_status", int, "abandon"),
    ],
)
async def test_attributes_are_there(client: DirectClient, name: str, kind: type, use: str) -> None:
    assert isinstance(getattr(client, name, None), kind), changed(name, use)


async def test_nats_py_lets_go_of_the_socket(client: DirectClient) -> None:
    for name in ("_reading_task", "_flusher_task", "_ping_interval_task"):
        assert getattr(client, name).done(), changed(f"how {name} ends", "connect")
    assert isinstance(client._ps.buf, bytearray), changed("the parser's buffer", "connect")
    reader = getattr(client._transport, "_io_reader", None)
    assert isinstance(reader, asyncio.StreamReader), changed("Transport._io_reader", "connect")


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
    client.write(b"SUB handshake.> 1\r\n")
    for number in range(100):
        client.write(b"PUB handshake.a re.ply 2\r\n%02d\r\n" % number)
    client.write(b"HPUB handshake.b %d %d\r\n" % (len(raw), len(raw) + 1) + raw + b"x\r\n")
    assert client.buffered > 0
    assert await client.ping(10)
    assert [data for _, _, data, _ in seen[:100]] == [b"%02d" % number for number in range(100)]
    assert seen[0] == (b"handshake.a", b"re.ply", b"00", None)
    assert seen[100] == (b"handshake.b", b"", b"x", raw)
    assert client.buffered == 0


async def test_failing_handler_and_unknown_subscription_do_not_end_the_read_loop(
    client: DirectClient, handlers: dict[int, Handler], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("handler's mistake")

    handlers[1] = fail
    client.write(b"SUB handshake.f 1\r\nSUB handshake.f 2\r\nPUB handshake.f 1\r\nx\r\n")
    assert await client.ping(10)
    assert "a callback failed for a message on 'handshake.f'" in caplog.text
    assert await client.ping(10)


async def test_pong_nobody_waits_for_does_not_end_the_connection(client: DirectClient) -> None:
    """nats-py 2.16 itself sets the result of a cancelled future and stops reading for ever."""
    waiting = [asyncio.create_task(client.ping(10)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    assert await client.ping(10)
    assert not client.has_ended()


async def test_a_new_info_replaces_the_old_one(client: DirectClient) -> None:
    """nats-py adds to what it knows, and keeps the first max_payload."""
    heard: list[object] = []
    client.on_info = lambda: heard.append(client.announced_servers)
    client._on_control(b'INFO {"connect_urls": ["127.0.0.1:4", "127.0.0.1:5"], "max_payload": 7}')
    client._on_control(b'INFO {"connect_urls": ["127.0.0.1:5"]}')
    client._on_control(b'INFO {"connect_urls": null}')
    assert heard == [["127.0.0.1:4", "127.0.0.1:5"], ["127.0.0.1:5"], []]
    assert client.server_info == {"connect_urls": None}


@pytest.mark.parametrize("line", [b"INFO []", b"INFO {", b"INFO " + b"[" * 100_000])
async def test_info_that_is_none_ends_the_connection(client: DirectClient, line: bytes) -> None:
    protocol = client._socket.get_protocol() if client._socket else None
    assert isinstance(protocol, Reader)
    protocol.feed(line + b"\r\n")
    await until(client.has_ended, what="the connection ends")


async def test_errors_that_leave_the_connection_open_are_passed_on(
    nats_server: EmbeddedServer,
) -> None:
    said: list[str] = []
    client = DirectClient({}, lambda _, text: said.append(text))
    await client.connect(servers=[nats_server.url], allow_reconnect=False)
    client._on_control(b"-ERR 'Permissions Violation for Publish to \"Some.Case\"'")
    client._on_control(b"-ERR 'maximum subscriptions exceeded'")
    assert said == [
        'Permissions Violation for Publish to "Some.Case"',
        "maximum subscriptions exceeded",
    ]
    assert await client.ping(10)
    client._on_control(b"-ERR 'User Authentication Expired'")
    await until(client.has_ended, what="another error ends the connection")
    assert client.end_reason == "the server ended the connection: User Authentication Expired"
    client.abandon()


async def test_what_came_before_the_change_of_hands_is_not_lost() -> None:
    """A server whose first messages come in the same packet as its PONG, cut within a line."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id": "x", "version": "2.15.0", "max_payload": 1048576}\r\n')
        while line := await reader.readline():
            received.append(line)
            if line == b"PING\r\n":
                writer.write(b"PONG\r\nPING\r\nMSG early 1 5\r\nhel")
                await writer.drain()
                await asyncio.sleep(0.05)
                writer.write(b"lo\r\nMSG later 1 1\r\n!\r\n")
        writer.close()

    seen: list[tuple[bytes, bytes]] = []
    handlers: dict[int, Handler] = {1: lambda subject, _, data, __: seen.append((subject, data))}
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        client = DirectClient(handlers)
        port = server.sockets[0].getsockname()[1]
        await client.connect(servers=[f"nats://127.0.0.1:{port}"], allow_reconnect=False)
        await until(lambda: len(seen) == 2, what="both messages came")
        assert seen == [(b"early", b"hello"), (b"later", b"!")]
        await until(lambda: b"PONG\r\n" in received, what="the PING was answered")
        client.abandon()
        await until(client.has_ended, what="the connection ends")


async def test_connection_that_talks_nonsense_is_dropped(
    client: DirectClient, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = client._socket.get_protocol() if client._socket else None
    assert isinstance(protocol, Reader)
    protocol.feed(b"MSG a 1 xyz\r\n")
    await until(client.has_ended, what="the connection ends")
    assert "lost track of NATS' protocol" in caplog.text


async def test_end_of_the_connection_is_noticed(own_server: EmbeddedServer) -> None:
    client = DirectClient({})
    await client.connect(servers=[own_server.url], allow_reconnect=False)
    ended = asyncio.Event()
    client.on_end(ended.set)
    own_server.pause()
    waiting = asyncio.create_task(client.ping(60))
    await asyncio.sleep(0.05)
    await asyncio.to_thread(own_server.kill)
    async with asyncio.timeout(20):
        await ended.wait()
        assert not await waiting  # at once, not after its time-out
        assert not await client.ping(60)
    client.abandon()


async def test_abandon_does_not_wait_for_a_server_that_stopped_reading(
    own_server: EmbeddedServer,
) -> None:
    client = DirectClient({})
    await client.connect(servers=[own_server.url], allow_reconnect=False)
    own_server.pause()
    try:
        for _ in range(40):
            client.write(b"PUB x 1000000\r\n" + bytes(1_000_000) + b"\r\n")
        await asyncio.sleep(0.05)
        assert client.buffered > 1_000_000
        client.abandon()
        await until(client.has_ended, what="the connection ends")
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


def test_other_version_is_named(monkeypatch: pytest.MonkeyPatch, nats_settings: Any) -> None:
    """It failed somewhere inside, with an error that named neither version."""
    broker_from_settings(wsgateway_settings)
    monkeypatch.setattr(versions, "version", lambda _: "2.17.0")
    with pytest.raises(BrokerMisconfigured, match=r"nats-py 2\.17\.0 is installed.*tried with"):
        broker_from_settings(wsgateway_settings)


def test_other_version_that_lacks_a_name_is_named_too() -> None:
    """It was an ImportError, which names neither version."""
    script = (
        "import importlib.metadata, nats.aio.client\n"
        "del nats.aio.client.RawCredentials\n"
        "importlib.metadata.version = lambda name: '2.17.0'\n"
        "import wsgateway.broker.nats"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=site_env(), capture_output=True, text=True
    )
    assert "BrokerMisconfigured: nats-py 2.17.0 is installed" in done.stderr


def test_tried_version_is_the_one_that_is_required() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (ours,) = [line for line in required if line.startswith("nats-py")]
    major, minor = versions.TRIED.split(".")
    assert ours == f"nats-py[nkeys]>={versions.TRIED},<{major}.{int(minor) + 1}"
