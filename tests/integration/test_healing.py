"""The connection heals itself: odd servers, files being written, renewed files, moved clusters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest

from tests.authority import Authority
from tests.integration.test_auth_tls import (
    ANN,
    new_key,
    operator_mode,
    refused,
    server,
    works,
)
from tests.support import hears, until
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.connection import ConnectionOptions, NatsConnection
from wsgateway.broker.nats.jetstream import ApiError
from wsgateway.broker.nats.server_info import ServerInfo
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import (
    BrokerForbidden,
    BrokerMisconfigured,
    BrokerUnavailable,
    MessageTooBig,
)
from wsgateway.protocol.backoff import Backoff

FAST = Backoff(0.01, 2.0, 0.05)


@asynccontextmanager
async def connected(*urls: str, **options: Any) -> AsyncIterator[NatsConnection]:
    connection = NatsConnection(
        ConnectionOptions(urls, backoff=FAST, **{"timeout": 20.0, **options})
    )
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


async def reason(connection: NatsConnection, pattern: str = r"attempts? in ") -> str:
    """Return why *connection* cannot connect, once its error matches *pattern*."""
    text = ""
    async with asyncio.timeout(20):
        while not re.search(pattern, text):
            with pytest.raises(BrokerUnavailable) as error:
                await connection.ready(0.01)
            text = str(error.value)
    return text


# -- credentials that are being written ----------------------------------------------------


def seed() -> tuple[str, str]:
    key = new_key(nkeys.PREFIX_BYTE_USER)
    return bytes(key.seed).decode(), key.public_key.decode()


@pytest.mark.parametrize("length", [0, 7, 30])
async def test_half_an_nkey_file_is_a_failed_attempt(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The task that connects died of it, silently: /readyz stayed 503 for ever."""
    secret, public = seed()
    path = tmp_path / "user.nk"
    path.write_text(secret[:length])
    with server(tmp_path, authorization={"users": [{"nkey": public}]}) as nats:
        async with connected(nats.url, nkey_seed=str(path)) as connection:
            text = await reason(connection)
            assert "user.nk' holds no nkey seed" in text
            await reason(connection, r"([4-9]|\d\d+) attempts")
            path.unlink()
            await reason(connection, "No such file or directory: ")
            path.write_text(secret)
            await connection.ready()
    assert secret[:7] not in caplog.text + text
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len([text for text in warnings if "holds no nkey seed" in text]) == 1
    assert any("connected to NATS" in r.getMessage() for r in caplog.records)


def without_jwt(text: str) -> str:
    return text[text.index("-----BEGIN USER NKEY SEED") :]


CUTS: list[Callable[[str], str]] = [
    lambda text: "",
    lambda text: text[:100],
    lambda text: text[: text.index("BEGIN USER NKEY SEED") + 30],
    without_jwt,  # nats-py looks for the JWT in a loop without an end, and the process hangs
]


@pytest.mark.parametrize("cut", CUTS)
async def test_half_a_credentials_file_is_a_failed_attempt(
    tmp_path: Path, cut: Callable[[str], str]
) -> None:
    config, path = operator_mode(tmp_path)
    whole = path.read_text()
    path.write_text(cut(whole))
    with server(tmp_path, **config) as nats:
        async with connected(nats.url, credentials=str(path)) as connection:
            text = await reason(connection)
            assert "user.creds' holds no user JWT and nkey seed" in text
            path.write_text(whole.replace("\n", "\r\n"))
            await connection.ready()


async def test_anything_else_that_fails_is_a_failed_attempt(
    monkeypatch: pytest.MonkeyPatch, nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    real = ConnectionOptions.for_nats
    errors: list[Exception] = [KeyError("odd"), RuntimeError("odder"), EOFError()]

    def fail(self: ConnectionOptions, address: Any) -> dict[str, Any]:
        if errors:
            raise errors.pop(0)
        return real(self, address)

    monkeypatch.setattr(ConnectionOptions, "for_nats", fail)
    async with connected(nats_server.url) as connection:
        await connection.ready()
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text.split(": ", 1)[1].split(" (")[0] for text in said] == [
        "KeyError: 'odd'",
        "RuntimeError: odder",
        "EOFError",
    ]


async def test_owner_that_fails_begins_again(
    monkeypatch: pytest.MonkeyPatch, nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    real = ServerInfo.parse
    errors: list[Exception] = [KeyError("odd")]

    def fail(info: Any) -> ServerInfo:
        if errors:
            raise errors.pop(0)
        return real(info)

    monkeypatch.setattr(ServerInfo, "parse", fail)
    async with connected(nats_server.url) as connection:
        await connection.ready()
        await connection.confirm()
    assert "task wsgateway-connection failed" in caplog.text


# -- TLS -----------------------------------------------------------------------------------


async def test_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    """Certificate, key and CA were read once, when the process started."""
    authority = Authority(tmp_path)
    (tmp_path / "old").mkdir()
    old = Authority(tmp_path / "old")
    certificate, key = authority.issue("server")
    mine = [Path(path) for path in old.issue("client")]
    renewed = authority.issue("client")
    ca = tmp_path / "trusted.pem"
    shutil.copy(old.path, ca)
    tls = {"cert_file": certificate, "key_file": key, "verify": True}
    with server(tmp_path, tls={**tls, "ca_file": str(authority.path)}) as nats:
        files = {"tls_ca": str(ca), "tls_cert": str(mine[0]), "tls_key": str(mine[1])}
        async with connected(nats.url.replace("nats:", "tls:"), **files) as connection:
            assert "certificate is not accepted" in await reason(connection)
            ca.write_text("half")
            await reason(connection, "holds no CA certificate")
            shutil.copy(authority.path, ca)
            mine[1].write_text("half")
            await reason(connection, "are not a certificate and its key")
            for old_file, new_file in zip(mine, renewed, strict=True):
                shutil.copy(new_file, old_file)
            await connection.ready()


@pytest.mark.parametrize("how", ["tls url", "ca"])
async def test_server_without_tls_gets_nothing_in_clear(
    settings: Any, tmp_path: Path, how: str
) -> None:
    """nats-py encrypts only what the server asks for: the password went over the wire in clear."""
    authority = Authority(tmp_path)
    with server(tmp_path) as nats:
        url = nats.url.replace("nats:", "tls:") if how == "tls url" else nats.url
        values = {} if how == "tls url" else {"NATS_TLS_CA": str(authority.path)}
        assert "the server offers no TLS" in await refused(settings, url, **values)


async def test_tls_that_is_offered_but_not_demanded_is_used(settings: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    tls = {"cert_file": certificate, "key_file": key}
    with server(tmp_path, tls=tls, allow_non_tls=True) as nats:
        url = nats.url.replace("nats:", "tls:")
        await works(settings, url, NATS_TLS_CA=str(authority.path))
        assert "certificate" in await refused(settings, url, NATS_TLS_CA="")


async def test_announced_address_is_checked_against_the_configured_name(tmp_path: Path) -> None:
    """Clusters announce IP addresses; certificates name hosts."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", ip=False)
    routes = [free_port() for _ in range(2)]

    def config(index: int) -> dict[str, Any]:
        return {
            "tls": {"cert_file": certificate, "key_file": key},
            "cluster": {
                "name": "c",
                "listen": f"127.0.0.1:{routes[index]}",
                "routes": [f"nats://127.0.0.1:{port}" for port in routes],
            },
        }

    with server(tmp_path / "a", **config(0)) as first, server(tmp_path / "b", **config(1)) as other:
        url = f"tls://localhost:{first.port}"
        async with connected(url, tls_ca=str(authority.path)) as connection:
            await connection.ready()
            await until(lambda: connection.servers.announced, 20, "the other")
            async with hears(connection.on_open):
                first.kill()
            assert connection.server.name == other.name


# -- addresses -----------------------------------------------------------------------------


async def test_percent_encoded_login_in_the_url(settings: Any, tmp_path: Path) -> None:
    """It was sent as it stands in the URL."""
    with server(tmp_path / "a", authorization={"user": "g@te", "password": "s/3:c,r%t"}) as nats:
        await works(settings, nats.url.replace("//", "//g%40te:s%2F3%3Ac%2Cr%25t@"))
        await works(settings, nats.url, NATS_USER="g@te", NATS_PASSWORD="s/3:c,r%t")
    settings.WSGATEWAY_NATS_USER = settings.WSGATEWAY_NATS_PASSWORD = ""
    with server(tmp_path / "b", authorization={"token": "t/k"}) as nats:
        await works(settings, nats.url.replace("//", "//t%2Fk@"))


async def test_login_in_the_url_wins_over_the_settings(settings: Any, tmp_path: Path) -> None:
    with server(tmp_path, authorization={"user": "gate", "password": "s3cret"}) as nats:
        url = nats.url.replace("//", "//gate:s3cret@")
        await works(settings, url, NATS_USER="other", NATS_PASSWORD="wr0ng")


async def test_ipv6_address(settings: Any, tmp_path: Path) -> None:
    with server(tmp_path, host="::1") as nats:
        await works(settings, f"nats://[::1]:{nats.port}")
        text = await refused(settings, f"nats://[::1]:{free_port()}")
        assert text.startswith("cannot reach NATS at [::1]:")


async def test_every_server_that_refuses_is_named(tmp_path: Path) -> None:
    with server(tmp_path, authorization={"user": "gate", "password": "s3cret"}) as nats:
        dead = f"127.0.0.1:{free_port()}"
        async with connected(nats.url, f"nats://{dead}") as connection:
            text = await reason(connection, "Authorization.*refused|refused.*Authorization")
            assert f"127.0.0.1:{nats.port}: Authorization Violation" in text
            assert f"{dead}: connection refused" in text


async def test_full_server_says_so(tmp_path: Path) -> None:
    with server(tmp_path, max_connections=1) as nats:
        async with connected(nats.url) as connection, connected(nats.url) as other:
            await until(lambda: connection.is_open or other.is_open, what="one")
            text = await reason(other if connection.is_open else connection)
            assert "maximum connections exceeded" in text.lower()


# -- what the server says later ------------------------------------------------------------


async def test_servers_that_left_the_cluster_are_forgotten(tmp_path: Path) -> None:
    """They piled up: from 7 addresses to 40 over 12 rolling restarts."""
    routes = [free_port() for _ in range(2)]

    def config(index: int) -> dict[str, Any]:
        urls = [f"nats://127.0.0.1:{port}" for port in routes]
        listen = f"127.0.0.1:{routes[index]}"
        return {"cluster": {"name": "c", "listen": listen, "routes": urls}}

    with server(tmp_path / "a", **config(0)) as first:
        async with connected(first.url) as connection, connected(first.url, discover=False) as deaf:
            await connection.ready()
            await deaf.ready()
            servers = connection.servers
            for number in range(3):
                with server(tmp_path / f"b{number}", **config(1)) as other:
                    await until(
                        lambda port=other.port: [a.port for a in servers.announced] == [port],
                        20,
                        "the new one, alone",
                    )
            await until(lambda: not servers.announced, 20, "nobody else")
            assert deaf.servers.announced == []
            assert connection.times_connected == 1


async def test_max_payload_that_was_lowered_costs_one_connection_not_one_a_try(
    settings: Any, own_server: EmbeddedServer, prefix: str
) -> None:
    """The size was checked before the first try only, and each further one cost a connection."""
    settings.NATS_BROKER_URL, settings.WSGATEWAY_PREFIX = own_server.url, prefix
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
        path = own_server.store / "nats-server.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "max_payload": 65536}))
        os.kill(own_server.pid, signal.SIGHUP)
        await until(lambda: "Reloaded: max_payload" in own_server.tail(), 20, "the reload")
        with pytest.raises(MessageTooBig, match="65536 bytes"):
            await broker.publish(ANN, bytes(100_000))
        assert broker.connection.max_payload == 65536
        assert broker.connection.times_connected == 2
        await broker.publish(ANN, bytes(60_000))
    finally:
        await broker.close()


async def test_why_the_server_ended_the_connection_is_logged(
    own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(own_server.url) as connection:
        await connection.ready()
        async with hears(connection.on_open):
            connection.publish("x", bytes(connection.max_payload + 1))
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert said == [
        "lost the connection to NATS (the server ended the connection: Maximum Payload "
        "Violation), reconnecting"
    ]


async def test_one_failing_waiter_does_not_keep_the_error_from_the_others(
    own_server: EmbeddedServer,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("mine")

    async with connected(own_server.url) as connection:
        await connection.ready()
        connection.subscribe("asked", lambda *_: None)
        connection.ask("asked", b"", fail, fail)
        request = asyncio.create_task(connection.request("asked", b"", timeout=60))
        await connection.confirm()
        await asyncio.to_thread(own_server.kill)
        with pytest.raises(BrokerUnavailable):
            await asyncio.wait_for(request, 20)


# -- JetStream that is not there for us ----------------------------------------------------


async def test_account_without_jetstream_is_an_error_that_says_so(
    settings: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason was a DEBUG line; the caller read "not ready within 5 s"."""
    accounts = {
        "A": {"users": [{"user": "a", "password": "a"}], "jetstream": True},
        "B": {"users": [{"user": "b", "password": "b"}]},
    }
    with server(tmp_path, accounts=accounts) as nats:
        url = nats.url.replace("//", "//b:b@")
        with pytest.raises(BrokerMisconfigured, match="not enabled for account; enable JetStream"):
            await works(settings, url)
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 1
    assert "not enabled for account" in errors[0]


async def test_what_keeps_the_streams_from_being_ready_is_in_the_error(
    settings: Any,
    nats_server: EmbeddedServer,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """JetStream's answer was logged four times a second, and the caller did not get it."""
    settings.NATS_BROKER_URL, settings.WSGATEWAY_PREFIX = nats_server.url, prefix
    settings.WSGATEWAY_PUBLISH_TIMEOUT = 1.0
    broker = broker_from_settings(wsgateway_settings)

    async def check() -> None:
        raise ApiError(400, 10999, "the moon is full")

    monkeypatch.setattr(broker.services, "refresh", check)
    await broker.open()
    try:
        with pytest.raises(BrokerUnavailable, match=r"within 1 s: .* the moon is full"):
            await broker.wait_ready()
    finally:
        await broker.close()
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 1
    assert "the moon is full" in errors[0]


async def test_failing_callback_does_not_keep_the_others_from_hearing_of_readiness(
    settings: Any, nats_server: EmbeddedServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one that raised ended the task, silently."""

    def fail() -> None:
        raise RuntimeError("mine")

    settings.NATS_BROKER_URL, settings.WSGATEWAY_PREFIX = nats_server.url, prefix
    broker = broker_from_settings(wsgateway_settings)
    heard: list[int] = []
    broker.on_ready(fail)
    broker.on_ready(lambda: heard.append(1))
    await broker.open()
    try:
        await until(lambda: heard, what="the second callback")
        assert "a callback on a broker that became ready failed" in caplog.text
    finally:
        await broker.close()


async def test_check_of_the_streams_that_fails_begins_again(
    settings: Any,
    nats_server: EmbeddedServer,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An odd answer ended the task, silently: not ready until the next connection."""
    settings.NATS_BROKER_URL, settings.WSGATEWAY_PREFIX = nats_server.url, prefix
    broker = broker_from_settings(wsgateway_settings)
    real, errors = broker.services.refresh, [KeyError("created")]

    async def check() -> None:
        if errors:
            raise errors.pop()
        await real()

    monkeypatch.setattr(broker.services, "refresh", check)
    await broker.open()
    try:
        await broker.wait_ready()
        assert "task wsgateway-prepare failed" in caplog.text
    finally:
        await broker.close()


async def test_subscription_beyond_the_servers_limit_is_an_error(tmp_path: Path) -> None:
    """The server says so, keeps the connection open, and the subscription hears nothing."""
    with server(tmp_path, max_subscriptions=2) as nats:
        async with connected(nats.url) as connection:  # its own answers take the first
            await connection.ready()
            connection.subscribe("first", lambda *_: None)
            await connection.confirm()
            connection.subscribe("second", lambda *_: None)
            with pytest.raises(BrokerForbidden, match="maximum subscriptions exceeded; raise"):
                await connection.confirm()
            assert connection.times_connected == 1


async def test_draining_leaves_the_error_to_those_who_subscribed(tmp_path: Path) -> None:
    """It took the error, so the next caller of `confirm` believed that all was well."""
    with server(tmp_path, max_subscriptions=2) as nats:
        async with connected(nats.url) as connection:
            await connection.ready()
            first = connection.subscribe("first", lambda *_: None)
            await connection.confirm()
            connection.subscribe("second", lambda *_: None)
            await first.drain(20.0)
            with pytest.raises(BrokerForbidden, match="maximum subscriptions exceeded"):
                await connection.confirm()


async def test_lost_protocol_shows_no_payload(caplog: pytest.LogCaptureFixture) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576}\r\n')
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
        writer.close()

    pretender = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = pretender.sockets[0].getsockname()[1]
    async with pretender, connected(f"nats://127.0.0.1:{port}") as connection:
        await connection.ready()
        async with hears(connection.on_open):
            writers[0].write(b"MSG a 1 6\r\ns3cret\r\ns3cret\r\n")
    assert "lost track of NATS' protocol (ValueError), reconnecting" in caplog.text
    assert "s3cret" not in caplog.text


# -- permissions that keep a process from starting -----------------------------------------


def restricted(publish: list[str], subscribe: list[str]) -> dict[str, Any]:
    permissions = {"publish": publish, "subscribe": subscribe}
    return {"users": [{"user": "u", "password": "p", "permissions": permissions}]}


async def test_streams_that_may_not_be_looked_at_are_an_error_at_once(
    settings: Any, tmp_path: Path
) -> None:
    """NATS names the subject; the caller read "not ready within 5 s"."""
    settings.WSGATEWAY_BROKER_TIMEOUT = settings.WSGATEWAY_PUBLISH_TIMEOUT = 60.0
    with server(tmp_path, authorization=restricted(["ws.>"], [">"])) as nats:
        url = nats.url.replace("//", "//u:p@")
        with pytest.raises(BrokerForbidden, match=r'Publish to "\$JS\.API\.STREAM\.'):
            await works(settings, url)


async def test_answers_that_may_not_be_heard_are_a_failed_attempt(tmp_path: Path) -> None:
    """Every request would wait for its timeout, and nobody would know why."""
    with server(tmp_path, authorization=restricted([">"], ["ws.>"])) as nats:
        async with connected(nats.url.replace("//", "//u:p@")) as connection:
            text = await reason(connection)
            assert re.search(r'Permissions Violation for Subscription to "_INBOX\.\w+\.\*"', text)
            assert not connection.times_connected
