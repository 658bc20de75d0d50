"""Rights that end while one of two gateways has lost NATS: no socket outlives its right."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable

import websockets.asyncio.client
from websockets.typing import Subprotocol

from tests.acceptance.proxy import proxy_to
from tests.support import ROOT, Gateway, site_env, until
from wsgateway.broker.embedded import EmbeddedServer

ENDED, CHANGED = 4501, 4016

PREPARE = """
import json
from django.contrib.auth import get_user_model, login
from django.http import HttpRequest
from django.contrib.sessions.backends.db import SessionStore
keys = {}
for name in NAMES:
    request = HttpRequest()
    request.session = SessionStore()
    user = get_user_model().objects.create_user(name, password=name)
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    request.session.save()
    keys[name] = request.session.session_key
print(json.dumps(keys))
"""
REVOKE = """
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.contrib.sessions.backends.db import SessionStore
users = get_user_model().objects.in_bulk(field_name="username")
users["deactivated"].is_active = False
users["deactivated"].save()
users["deleted"].delete()
users["renewed"].set_password("new")
users["renewed"].save()
Session.objects.get(pk=KEYS["flushed"]).delete()
SessionStore(KEYS["rotated"]).cycle_key()
"""
BY_HAND = """
import time
from django.db import transaction
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
transaction.set_autocommit(False)
Session.objects.get(pk=KEYS["stays"]).delete()
transaction.rollback()
user = get_user_model().objects.get(username="deactivated")
user.is_active = False
user.save()
Session.objects.get(pk=KEYS["left"]).delete()
with transaction.atomic():
    get_user_model().objects.get(username="deleted").delete()
time.sleep(2)  # the gateway asks the database before the commit
transaction.commit()
"""
SIGNALLED = {
    "deactivated": ENDED,
    "deleted": ENDED,
    "renewed": ENDED,
    "flushed": ENDED,
    "rotated": CHANGED,
    "left": ENDED,
}
FOUND = {**SIGNALLED, "flushed": CHANGED, "left": CHANGED}
"""A gateway that was away cannot tell a session that has ended from one that was rotated."""


class Site:
    """The site's commands, and sockets on its gateways."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.keys: dict[str, str] = {}

    def manage(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=site_env(DEBUG="1", SECRET_KEY="tests", **self.env),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, code: str) -> str:
        return self.manage("shell", "--no-imports", "-v0", "-c", code)

    def prepare(self) -> None:
        self.manage("migrate", "-v0")
        names = [*SIGNALLED, "stays"]
        self.keys = json.loads(self.run(f"NAMES = {names!r}\n{PREPARE}").splitlines()[-1])

    def log_out(self, gateway: Gateway, name: str) -> None:
        token = "a" * 32
        cookies = f"sessionid={self.keys[name]}; csrftoken={token}"
        headers = {"Cookie": cookies, "X-CSRFToken": token}
        request = urllib.request.Request(gateway.http("/logout/"), b"", headers)
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200

    async def connect(
        self, gateway: Gateway, name: str
    ) -> websockets.asyncio.client.ClientConnection:
        socket = await websockets.asyncio.client.connect(
            gateway.ws(f"/ws/orders/{name}/"),
            additional_headers={"Cookie": f"sessionid={self.keys[name]}"},
            subprotocols=[Subprotocol("wsgateway.v1")],
            proxy=None,
            open_timeout=30,
        )
        return socket


async def test_gateway_that_was_reconnecting_closes_what_the_others_closed(
    gateway_factory: Callable[..., Gateway],
    nats_server: EmbeddedServer,
    prefix: str,
) -> None:
    async with proxy_to(nats_server.port) as proxy:
        asks_seldom = {"WSGATEWAY_REVALIDATE_INTERVAL": "3600"}
        there = gateway_factory(**asks_seldom)
        away = gateway_factory(NATS_BROKER_URL=f"nats://127.0.0.1:{proxy.port}", **asks_seldom)
        site = Site(
            {
                "DATABASE_URL": there.env["DATABASE_URL"],
                "NATS_BROKER_URL": nats_server.url,
                "WSGATEWAY_PREFIX": prefix,
            }
        )
        await asyncio.to_thread(site.prepare)
        sockets = {
            gateway: {name: await site.connect(gateway, name) for name in site.keys}
            for gateway in (there, away)
        }
        for socket in (*sockets[there].values(), *sockets[away].values()):
            assert json.loads(await asyncio.wait_for(socket.recv(), 30))["type"] == "welcome"

        def codes(gateway: Gateway) -> dict[str, int]:
            found = {name: socket.close_code for name, socket in sockets[gateway].items()}
            return {name: code for name, code in found.items() if code is not None}

        proxy.deaf = True
        await proxy.cut()
        await asyncio.to_thread(site.run, f"KEYS = {site.keys!r}\n{REVOKE}")
        await asyncio.to_thread(site.log_out, there, "left")
        await until(lambda: len(codes(there)) == len(SIGNALLED), what="one gateway heard of it")
        assert codes(there) == SIGNALLED
        assert codes(away) == {}

        proxy.deaf = False
        await until(lambda: len(codes(away)) == len(FOUND), what="the other one finds out")
        assert codes(away) == FOUND

        # Those who were told to come back get in with a new cookie only
        for name in ("flushed", "left", "rotated"):
            again = await site.connect(away, name)
            await asyncio.wait_for(again.wait_closed(), 10)
            assert again.close_code == ENDED
        assert sockets[there]["stays"].close_code is None
        assert sockets[away]["stays"].close_code is None
        for gateway in (there, away):
            await sockets[gateway]["stays"].close()
            assert "Traceback" not in gateway.output


async def test_commit_with_autocommit_off(
    gateway_factory: Callable[..., Gateway], nats_server: EmbeddedServer, prefix: str
) -> None:
    """Gateways were told at once and asked the database once, before the commit: the sockets of a
    deactivated user stayed open until the next revalidation. A session whose deletion was rolled
    back lost its sockets."""
    gateway = gateway_factory(WSGATEWAY_REVALIDATE_INTERVAL="3600")
    env = {"DATABASE_URL": gateway.env["DATABASE_URL"], "NATS_BROKER_URL": nats_server.url}
    site = Site({**env, "WSGATEWAY_PREFIX": prefix})
    await asyncio.to_thread(site.prepare)
    ends = {"deactivated": ENDED, "deleted": ENDED, "left": CHANGED}
    sockets = {name: await site.connect(gateway, name) for name in (*ends, "stays")}
    for socket in sockets.values():
        assert json.loads(await asyncio.wait_for(socket.recv(), 30))["type"] == "welcome"
    await asyncio.to_thread(site.run, f"KEYS = {site.keys!r}\n{BY_HAND}")
    closed = [sockets[name].wait_closed() for name in ends]
    await asyncio.wait_for(asyncio.gather(*closed), 20)
    assert {name: sockets[name].close_code for name in ends} == ends
    assert sockets["stays"].close_code is None
    await sockets["stays"].close()
