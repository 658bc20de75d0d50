"""Every way to connect that the settings offer, against a server that insists on it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest

from tests.authority import Authority
from tests.support import hears, until, wait_for
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.connection import ConnectionOptions, NatsConnection
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("service1", "ann")


@contextmanager
def server(folder: Path, **config: Any) -> Iterator[EmbeddedServer]:
    """A server that insists on something; its own readiness probe knows no secret."""
    nats = EmbeddedServer(folder / "nats", sync_interval="10s", config=config)
    nats.spawn()
    try:
        wait_for(lambda: "Server is ready" in nats.tail(50) or not nats.running, 20)
        assert nats.running, nats.tail()
        yield nats
    finally:
        nats.kill()


async def works(settings: Any, url: str, **values: Any) -> None:
    """Publish and read with these settings."""
    settings.NATS_BROKER_URL = url
    for name, value in values.items():
        setattr(settings, f"WSGATEWAY_{name}", value)
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
        receipt = await broker.publish(ANN, b"hello")
        batch = await broker.inboxes.read_after(ANN, receipt.offset - 1, limit=1)
        assert batch.messages[0].payload == b"hello"
    finally:
        await broker.close()


async def refused(settings: Any, url: str, **values: Any) -> str:
    settings.WSGATEWAY_BROKER_TIMEOUT = 1.0
    with pytest.raises(BrokerUnavailable) as error:
        await works(settings, url, **values)
    return str(error.value)


async def test_user_and_password(settings: Any, tmp_path: Path) -> None:
    users = [{"user": "gate", "password": "s3cret"}]
    with server(tmp_path, authorization={"users": users}) as nats:
        await works(settings, nats.url, NATS_USER="gate", NATS_PASSWORD="s3cret")
        text = await refused(settings, nats.url, NATS_USER="gate", NATS_PASSWORD="wr0ng")
        assert "authorization" in text.lower()
        assert "wr0ng" not in text


async def test_user_and_password_in_the_url(settings: Any, tmp_path: Path) -> None:
    with server(tmp_path, authorization={"user": "gate", "password": "s3cret"}) as nats:
        await works(settings, nats.url.replace("//", "//gate:s3cret@"))
        text = await refused(settings, nats.url.replace("//", "//gate:wr0ng@"))
        assert "wr0ng" not in text


async def test_token(settings: Any, tmp_path: Path) -> None:
    with server(tmp_path, authorization={"token": "t0ken"}) as nats:
        await works(settings, nats.url, NATS_TOKEN="t0ken")
        assert "authorization" in (await refused(settings, nats.url, NATS_TOKEN="no")).lower()


def new_key(kind: int) -> Any:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))


async def test_nkey(settings: Any, tmp_path: Path) -> None:
    key = new_key(nkeys.PREFIX_BYTE_USER)
    path = tmp_path / "user.nk"
    path.write_bytes(bytes(key.seed))
    users = [{"nkey": key.public_key.decode()}]
    with server(tmp_path, authorization={"users": users}) as nats:
        await works(settings, nats.url, NATS_NKEY_SEED=str(path))
        path.write_bytes(bytes(new_key(nkeys.PREFIX_BYTE_USER).seed))
        await refused(settings, nats.url, NATS_NKEY_SEED=str(path))


def jwt(issuer: Any, subject: str, kind: str, claims: dict[str, Any]) -> str:
    """Return a NATS JWT. Source: the layout that nats-server 2 documents."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    body: dict[str, Any] = {
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "name": kind,
        "sub": subject,
        "nats": {"type": kind, "version": 2, **claims},
    }
    digest = hashlib.sha256(json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    head = part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    signed = f"{head}.{part(json.dumps(body).encode())}"
    return f"{signed}.{part(issuer.sign(signed.encode()))}"


def operator_mode(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the configuration of a server that wants JWTs, and the path of a user's ``.creds``."""
    operator = new_key(nkeys.PREFIX_BYTE_OPERATOR)
    account, system = (new_key(nkeys.PREFIX_BYTE_ACCOUNT) for _ in range(2))
    user = new_key(nkeys.PREFIX_BYTE_USER)
    anything = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    storage = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    name, system_name = account.public_key.decode(), system.public_key.decode()
    limits = {**anything, "wildcards": True}
    config = {
        "operator": jwt(operator, operator.public_key.decode(), "operator", {}),
        "resolver": "MEMORY",
        "system_account": system_name,
        "resolver_preload": {
            name: jwt(operator, name, "account", {"limits": {**limits, **storage}}),
            system_name: jwt(operator, system_name, "account", {"limits": limits}),
        },
    }
    limits = {"subs": -1, "data": -1, "payload": -1}
    token = jwt(account, user.public_key.decode(), "user", {**limits, "pub": {}, "sub": {}})
    path = folder / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{bytes(user.seed).decode()}\n"
        "------END USER NKEY SEED------\n"
    )
    return config, path


async def test_credentials_file(settings: Any, tmp_path: Path) -> None:
    config, path = operator_mode(tmp_path)
    with server(tmp_path, **config) as nats:
        await works(settings, nats.url, NATS_CREDENTIALS=str(path))
        assert await refused(settings, nats.url, NATS_CREDENTIALS="")


async def test_tls_with_client_certificate(settings: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    mine, my_key = authority.issue("client")
    tls = {
        "cert_file": certificate,
        "key_file": key,
        "ca_file": str(authority.path),
        "verify": True,
    }
    with server(tmp_path, tls=tls) as nats:
        url = nats.url.replace("nats://", "tls://")
        ours = {"NATS_TLS_CERT": mine, "NATS_TLS_KEY": my_key}
        await works(settings, url, NATS_TLS_CA=str(authority.path), **ours)
        (tmp_path / "other").mkdir()
        stranger = Authority(tmp_path / "other")
        assert (
            "certificate" in (await refused(settings, url, NATS_TLS_CA=str(stranger.path))).lower()
        )


async def test_one_of_several_servers_is_dead(settings: Any, tmp_path: Path) -> None:
    with socket.socket() as nobody, server(tmp_path) as nats:
        nobody.bind(("127.0.0.1", 0))  # bound, but it does not listen
        dead = f"nats://127.0.0.1:{nobody.getsockname()[1]}"
        for _ in range(4):  # the order is random
            await works(settings, f"{dead}, {nats.url}")


async def test_servers_that_the_cluster_names_get_the_urls_credentials(tmp_path: Path) -> None:
    """Only the configured server was asked with them; the others refused when it was dead."""
    routes = [free_port() for _ in range(2)]

    def config(index: int) -> dict[str, Any]:
        return {
            "authorization": {"user": "gate", "password": "s3cret"},
            "cluster": {
                "name": "c",
                "listen": f"127.0.0.1:{routes[index]}",
                "routes": [f"nats://127.0.0.1:{port}" for port in routes],
            },
        }

    with server(tmp_path / "a", **config(0)) as first, server(tmp_path / "b", **config(1)) as other:
        url = first.url.replace("//", "//gate:s3cret@")
        connection = NatsConnection(ConnectionOptions((url,), timeout=20.0))
        try:
            await connection.open()
            await connection.ready()
            # A server tells its clients of another one at once; nats-py notes it.
            await until(lambda: connection.servers.announced, 20, "the other")
            async with hears(connection.on_open):
                first.kill()
            assert connection.server.name == other.name
            assert "s3cret" not in connection.address
        finally:
            await connection.close()
