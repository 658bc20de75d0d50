"""Revoked means closed: what Django signals, within a second; the rest when gateways ask again."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import jwt
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model, login, update_session_auth_hash
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models.signals import post_delete
from django.http import HttpRequest
from django.test import Client

import wsgateway
from tests.event_streams import Reader
from tests.support import until, wait_for, within
from wsgateway import receivers
from wsgateway.broker.connection import Connection
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway import revocation
from wsgateway.gateway.hub import Hub, get_hub
from wsgateway.gateway.revocation import TOPIC, Notice, session_digest, user_digest
from wsgateway.gateway.session import Session as SocketSession
from wsgateway.gateway.sockets import Socket
from wsgateway.gateway.transport import Transport
from wsgateway.identity import (
    Identity,
    SessionIdentity,
    TokenIdentity,
    make_token,
    require_valid_token,
    resolve_identity,
)
from wsgateway.identity.voiding import void_tokens
from wsgateway.logins import reasons_to_close, session_store
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.v1 import Resume
from wsgateway.protocol.v1.endpoint import V1Endpoint
from wsgateway.routing import sse_router

pytestmark = pytest.mark.django_db(transaction=True)

ENDED, CHANGED = CloseCode.NOT_AUTHENTICATED, CloseCode.CREDENTIALS_CHANGED
ENGINES = {
    name: f"django.contrib.sessions.backends.{name}"
    for name in ("db", "cached_db", "cache", "file", "signed_cookies")
}
ON_THE_SERVER = ("db", "cached_db", "cache", "file")
IN_THE_DATABASE = ("db", "cached_db")


class Browser:
    """A browser with a session, and a socket of it on each gateway."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.client = Client()
        self.codes: list[int] = []
        self.closing: list[float] = []

    @property
    def key(self) -> str:
        return self.client.cookies["sessionid"].value

    @property
    def request(self) -> Any:
        """What a view gets from it."""
        request: Any = HttpRequest()
        request.COOKIES["sessionid"] = self.key
        request.session = session_store()(self.key)
        request.user = self.world.users["ann"]
        return request

    @property
    def scope(self) -> dict[str, Any]:
        """What a socket gets from it."""
        return {
            "headers": [(b"cookie", f"sessionid={self.key}".encode())],
            "url_route": {"kwargs": {"service": "orders"}},
        }

    async def open_sockets(self) -> None:
        identity = await resolve_identity(self.scope)
        for hub in self.world.hubs:
            await self.world.open(hub, identity, self.codes, self.closing)

    async def closed(self, code: CloseCode) -> None:
        """Wait until the socket of each gateway is closed; all with *code*."""
        await until(lambda: len(self.codes) == len(self.world.hubs), what=f"{self.name} is closed")
        assert self.codes == [code] * len(self.world.hubs)


class World:
    """Two gateways; ann in two browsers, bob in another one."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        brokers = [broker_from_settings(wsgateway_settings) for _ in range(2)]
        self.hubs = [Hub(Connection(loop, broker)) for broker in brokers]
        self.users: dict[str, Any] = {}
        self.patches = ExitStack()
        self.ann = Browser(self, "ann")
        self.laptop = Browser(self, "laptop")
        self.bob = Browser(self, "bob")

    async def open(
        self, hub: Hub, identity: Identity, codes: list[int], closing: list[float] | None = None
    ) -> None:
        async def send(event: Any) -> None:
            if event["type"] == "websocket.close":
                codes.append(event["code"])
            elif event["type"] == "websocket.send" and closing is not None:
                frame = json.loads(event["text"])
                closing.extend([frame["reconnect_after"]] if frame["type"] == "closing" else [])

        await SocketSession(hub, identity, Socket(Transport(send), V1Endpoint)).start(Resume())

    async def begin(self) -> None:
        for hub in self.hubs:
            await hub.open()
            await hub.broker.wait_ready()
        await sync_to_async(self._log_in)()
        checks = count_checks(self)
        for browser in (self.ann, self.laptop, self.bob):
            await browser.open_sockets()
        await until(lambda: sum(checks) >= 6, what="new sockets have been asked about")

    def _log_in(self) -> None:
        for name in ("ann", "bob"):
            self.users[name] = get_user_model().objects.create_user(name, password=name)
        self.ann.client.force_login(self.users["ann"])
        self.laptop.client.force_login(self.users["ann"])
        self.bob.client.force_login(self.users["bob"])

    async def end(self) -> None:
        self.patches.close()
        for hub in self.hubs:
            await hub.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest, nats_settings: Any, tmp_path: Any) -> str:
    name: str = getattr(request, "param", "db")
    nats_settings.SESSION_ENGINE = ENGINES[name]
    nats_settings.SESSION_FILE_PATH = str(tmp_path)
    nats_settings.WSGATEWAY_REVALIDATE_INTERVAL = 3600.0  # signals alone close in time
    return name


@pytest.fixture
async def world(engine: str) -> AsyncIterator[World]:
    world = World()
    await world.begin()
    yield world
    await world.end()


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("engine", names, indirect=True)


def each_engine(server: CloseCode) -> pytest.MarkDecorator:
    """Every engine; where the session is the cookie itself, clients are told to come back."""
    codes = [(name, CHANGED if name == "signed_cookies" else server) for name in ENGINES]
    return pytest.mark.parametrize(("engine", "code"), codes, indirect=["engine"])


# -- signalled -----------------------------------------------------------------------------------


@each_engine(ENDED)
async def test_log_out(world: World, engine: str, code: CloseCode) -> None:
    await sync_to_async(world.ann.client.post)("/logout/")
    await world.ann.closed(code)
    assert world.laptop.codes == ([code] * 2 if engine == "signed_cookies" else [])
    assert world.bob.codes == []


@on("db")
@pytest.mark.parametrize("how", ["logout", "gateway disconnect"])
async def test_server_sent_events_end_too(world: World, how: str) -> None:
    """A browser would reconnect by itself, so it is told to wait for weeks."""
    hub = get_hub()
    await hub.open()
    await hub.broker.wait_ready()

    def read(browser: Browser) -> Reader:
        return Reader(sse_router, "/orders/", cookie=f"sessionid={browser.key}")

    async with read(world.ann) as ann, read(world.laptop) as laptop, read(world.bob) as bob:
        await until(lambda: all(each.named("welcome") for each in (ann, laptop, bob)))
        if how == "logout":
            await sync_to_async(world.ann.client.post)("/logout/")
            ended = {ann: ENDED}
        else:
            command = ("gateway", "disconnect", "orders", "ann", "--no-input")
            await sync_to_async(call_command)(*command)
            ended = dict.fromkeys((ann, laptop), CloseCode.DISCONNECTED_BY_OPERATOR)
        await until(lambda: all(each.ended for each in ended))
        for each, code in ended.items():
            assert each.named("closed")[0].fields["code"] == code
            assert each.parser.retry == 2**31 - 1
        assert not bob.ended
        if how == "logout":
            assert not laptop.ended
            async with read(world.ann) as again:
                assert again.status == 401
    await hub.close()


@on(*ENGINES)
async def test_password_change_keeps_the_browser_that_made_it(world: World, engine: str) -> None:
    """A logout named only the current session key: a socket from before a password change, whose
    session had another key, stayed open and went on receiving."""

    def change() -> None:
        user, request = world.users["ann"], world.ann.request
        user.set_password("new")
        user.save()
        time.sleep(0.05)  # gateways hear of it before the session is rotated
        update_session_auth_hash(request, user)

    await sync_to_async(change)()
    await world.ann.closed(CHANGED)
    await world.laptop.closed(CHANGED if engine == "signed_cookies" else ENDED)
    assert world.bob.codes == []


@each_engine(ENDED)
async def test_log_in_as_somebody_else(world: World, code: CloseCode) -> None:
    await log_in(world.ann, world.users["bob"])
    await world.ann.closed(code)
    assert world.bob.codes == []


async def log_in(browser: Browser, user: Any) -> None:
    path = "django.contrib.auth.backends.ModelBackend"
    await sync_to_async(lambda: login(browser.request, user, path))()


@on(*ON_THE_SERVER)
async def test_log_in_as_the_same_user(world: World, engine: str) -> None:
    """Django rotates the key only if the password has changed."""
    await log_in(world.ann, world.users["ann"])
    await get_user_model().objects.filter(username="ann").aupdate(password="x")
    user = await get_user_model().objects.aget(username="ann")
    await log_in(world.laptop, user)
    await world.laptop.closed(CHANGED if engine in ("cache", "file") else ENDED)
    assert world.ann.codes == world.bob.codes == []


@on(*ON_THE_SERVER)
async def test_log_in_without_a_session_leaves_the_one_in_the_cookie(
    world: World, engine: str
) -> None:
    def log_in_by_token() -> None:
        for session in (session_store()(), None):
            request = world.ann.request
            request.session = session
            user_logged_in.send(sender=None, request=request, user=world.users["bob"])

    await sync_to_async(log_in_by_token)()
    await sync_to_async(world.laptop.client.post)("/logout/")
    await world.laptop.closed(ENDED)
    assert world.ann.codes == world.bob.codes == []


@on(*IN_THE_DATABASE)
async def test_cycle_key(world: World, engine: str) -> None:
    await sync_to_async(lambda: world.ann.request.session.cycle_key())()
    await world.ann.closed(CHANGED)
    await world.laptop.request.session.acycle_key()
    await world.laptop.closed(CHANGED)
    assert world.bob.codes == []


async def test_rotated_client_waits_for_its_new_cookie(world: World) -> None:
    """Django rotates the session while it makes the response with the new cookie. A client that
    came back before that response was refused with 4501, and stopped."""
    began = time.monotonic()
    await sync_to_async(lambda: world.ann.request.session.cycle_key())()
    await world.ann.closed(CHANGED)
    assert time.monotonic() - began > 0.4
    assert len(world.ann.closing) == 2
    assert all(2.0 <= after <= 4.0 for after in world.ann.closing)
    await sync_to_async(lambda: world.laptop.request.session.flush())()
    await world.laptop.closed(ENDED)
    assert world.laptop.closing == []


@on(*IN_THE_DATABASE)
async def test_flush(world: World, engine: str) -> None:
    await sync_to_async(lambda: world.ann.request.session.flush())()
    await world.ann.closed(ENDED)
    assert world.laptop.codes == world.bob.codes == []


async def test_session_deleted_by_an_operator(world: World) -> None:
    await Session.objects.filter(pk__in=[world.ann.key, world.laptop.key]).adelete()
    await world.ann.closed(ENDED)
    await world.laptop.closed(ENDED)
    assert world.bob.codes == []


async def new_password(user: Any) -> None:
    user.set_password("new")
    await user.asave()


async def deactivate(user: Any) -> None:
    user.is_active = False
    await user.asave(update_fields=["is_active"])


async def delete(user: Any) -> None:
    await user.adelete()


async def delete_by_query(user: Any) -> None:
    await get_user_model().objects.filter(pk=user.pk).adelete()


UserChange = Callable[[Any], Awaitable[None]]


@pytest.mark.parametrize("change", [new_password, deactivate, delete, delete_by_query])
@on("db", "cache")
async def test_user_changed(world: World, engine: str, change: UserChange) -> None:
    await change(world.users["ann"])
    await world.ann.closed(ENDED)
    await world.laptop.closed(ENDED)
    assert world.bob.codes == []


@pytest.mark.parametrize(
    "end",
    [new_password, deactivate, delete, sync_to_async(wsgateway.log_out_everywhere)],
    ids=["new password", "deactivated", "deleted", "logged out everywhere"],
)
async def test_sockets_on_both_gateways_close_within_a_second(
    world: World, end: UserChange
) -> None:
    """Tests asserted 5 or 10 seconds, which a slow poll would have passed, too."""
    names = iter(("carol", "carla", "carlos"))

    async def attempt() -> float:
        browser = Browser(world, next(names))
        user = await get_user_model().objects.acreate_user(browser.name, password="x")
        await sync_to_async(browser.client.force_login)(user)
        checks = count_checks(world)
        await browser.open_sockets()
        await until(lambda: sum(checks) >= 2, what="the new sockets have been asked about")
        began = time.monotonic()
        await end(user)
        await browser.closed(ENDED)
        return time.monotonic() - began

    await within(1.0, attempt)
    assert world.bob.codes == []


SECRET = "a secret that is long enough for HS256"


def jwt_scope(user: Any, **claims: Any) -> dict[str, Any]:
    """What a socket with a JSON web token gets."""
    values = {"sub": str(user.pk), "exp": time.time() + 60, "iat": int(time.time()), **claims}
    return token_scope(jwt.encode(values, SECRET, "HS256"))


def token_scope(token: str) -> dict[str, Any]:
    return {
        "headers": [(b"authorization", f"Bearer {token}".encode())],
        "url_route": {"kwargs": {"service": "orders"}},
    }


@pytest.fixture
def tokens(nats_settings: Any) -> None:
    """Gateways take tokens of both kinds beside sessions."""
    names = ("TokenIdentity", "JwtUserIdentity", "SessionIdentity")
    nats_settings.WSGATEWAY_IDENTITY = [f"wsgateway.identity.{name}" for name in names]
    nats_settings.WSGATEWAY_JWT_ALGORITHMS = ["HS256"]
    nats_settings.WSGATEWAY_JWT_KEYS = [SECRET]


async def is_let_in(world: World, scope: dict[str, Any]) -> bool:
    """Say whether a gateway lets a handshake with *scope* in."""
    try:
        identity = await resolve_identity(scope)
        await require_valid_token(world.hubs[1].broker, identity)
    except IdentityRefused:
        return False
    return True


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.usefixtures("tokens")
async def test_log_out_everywhere(world: World, how: str) -> None:
    """Every browser and every token, on both gateways; and no old token lets in again."""
    ann, bob = world.users["ann"], world.users["bob"]
    old = [jwt_scope(ann), token_scope(await sync_to_async(make_token)("orders", ann))]
    others = jwt_scope(bob)
    codes: list[int] = []
    for scope in (*old, others):
        assert await is_let_in(world, scope)
        identity = await resolve_identity(scope)
        for hub in world.hubs:
            await world.open(hub, identity, codes if scope is not others else world.bob.codes)
    if how == "sync":
        await sync_to_async(wsgateway.log_out_everywhere)(ann)
    else:
        await wsgateway.alog_out_everywhere(ann)
    await world.ann.closed(ENDED)
    await world.laptop.closed(ENDED)
    await until(lambda: len(codes) == 4, what="the tokens' sockets are closed")
    assert codes == [ENDED] * 4
    for scope in (*old, world.ann.scope):
        assert not await is_let_in(world, scope)
    fresh = token_scope(await sync_to_async(make_token)("orders", ann))
    for scope in (jwt_scope(ann, iat=int(time.time()) + 1), fresh, others, world.bob.scope):
        assert await is_let_in(world, scope)
    assert world.bob.codes == []


@pytest.mark.usefixtures("tokens")
async def test_new_password_ends_tokens_too(world: World) -> None:
    ann = world.users["ann"]
    scopes = [jwt_scope(ann), token_scope(await sync_to_async(make_token)("orders", ann))]
    codes: list[int] = []
    for scope in scopes:
        await world.open(world.hubs[0], await resolve_identity(scope), codes)
    await new_password(ann)
    await until(lambda: len(codes) == 2, what="the tokens' sockets are closed")
    assert codes == [ENDED] * 2
    await sync_to_async(receivers.announcer.finish)()
    for scope in scopes:
        assert not await is_let_in(world, scope)


@pytest.mark.usefixtures("tokens")
async def test_saving_a_user_without_a_new_password_voids_no_token(world: World) -> None:
    scope = jwt_scope(world.users["ann"])
    ann = await get_user_model().objects.aget(username="ann")
    ann.first_name = "Ann"
    await ann.asave()
    assert await ann.acheck_password("ann")  # which may store a hash of its own
    await sync_to_async(receivers.announcer.finish)()
    assert await is_let_in(world, scope)


@pytest.mark.usefixtures("tokens")
async def test_tokens_of_a_user_who_may_not_log_in(world: World) -> None:
    ann = world.users["ann"]
    scopes = [jwt_scope(ann), token_scope(await sync_to_async(make_token)("orders", ann))]
    await deactivate(ann)
    for scope in scopes:
        assert not await is_let_in(world, scope)
    with pytest.raises(IdentityRefused, match="not active"):
        make_token("orders", ann)
    with pytest.raises(TypeError, match="give a Django user"):
        wsgateway.log_out_everywhere("ann")


def test_tables_of_tokens_are_heard_if_they_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receivers, "TOKEN_MODELS", ("auth.Group", "not_installed.Token"))
    receivers.connect()
    try:
        assert post_delete.has_listeners(Group)
    finally:
        uid = "wsgateway.token_deleted"
        assert post_delete.disconnect(sender=Group, dispatch_uid=uid)


async def test_row_of_a_token_is_deleted(world: World) -> None:
    """REST framework's tokens are rows, and logging out deletes them."""
    ann = world.users["ann"]
    rows = [await Group.objects.acreate(name=name) for name in ("phone", "tablet")]
    codes: list[list[int]] = [[], []]
    for row, found in zip(rows, codes, strict=True):
        user_id, credential = str(ann.pk), ("auth.Group", str(row.pk))
        identity = Identity("orders", "ann", user_id=user_id, credential=credential)
        await world.open(world.hubs[1], identity, found)
    await rows[0].adelete()
    receivers.on_token_deleted(SimpleNamespace(user_id=ann.pk), using="default")
    await until(lambda: codes[0], what="the phone's socket is closed")
    assert codes == [[ENDED], []]
    assert world.ann.codes == []


async def test_changes_that_end_no_log_in_close_nothing(world: World) -> None:
    ann, checks = world.users["ann"], count_checks(world)
    await ann.asave(update_fields=["last_login"])
    await get_user_model()(username="new").asave()
    ann.first_name = "Ann"
    await ann.asave()
    await until(lambda: sum(checks) == 4, what="both gateways have asked about ann's two sockets")
    assert world.ann.codes == world.laptop.codes == world.bob.codes == []


async def test_renamed_user_comes_back_under_the_new_name(world: World) -> None:
    """Somebody else may get the old name, and the inbox that goes with it."""
    ann = world.users["ann"]
    ann.username = "anna"
    await ann.asave()
    await world.ann.closed(CHANGED)
    await world.laptop.closed(CHANGED)
    assert world.bob.codes == []


class ByHeader:
    """Names Django users, and says nothing of how they logged in."""

    async def resolve(self, scope: Any) -> Identity | None:
        return Identity("orders", scope["name"])

    def get_user(self, name: str) -> Any:
        return get_user_model().objects.get(username=name)


async def test_resolver_that_finds_users_needs_nothing_else(
    world: World, nats_settings: Any
) -> None:
    nats_settings.WSGATEWAY_IDENTITY = [f"{__name__}.ByHeader"]
    codes: dict[str, list[int]] = {"ann": [], "bob": [], "robot": []}
    for name, found in codes.items():
        identity = await resolve_identity({"name": name})
        await world.open(world.hubs[0], identity, found)
    await new_password(world.users["ann"])
    await deactivate(world.users["bob"])
    await until(lambda: codes["bob"], what="bob is closed")
    assert codes == {"ann": [], "bob": [ENDED], "robot": []}


def count_checks(world: World) -> list[int]:
    """Return a list that gets the size of each batch that a gateway asks about."""
    checks: list[int] = []
    original = revocation.areasons_to_close

    async def check(identities: Any) -> Any:
        found = await original(identities)
        checks.append(len(identities))
        return found

    world.patches.enter_context(patch.object(revocation, "areasons_to_close", check))
    return checks


async def test_nothing_is_told_before_the_commit_or_after_a_rollback(world: World) -> None:
    heard: list[bytes] = []
    world.hubs[0].broker.listen(TOPIC, heard.append)
    ann = world.users["ann"]

    def roll_back() -> None:
        with transaction.atomic():
            ann.delete()
            Session.objects.all().delete()
            transaction.set_rollback(True)

    def commit() -> None:
        with transaction.atomic():
            world.bob.request.session.flush()
            time.sleep(0.3)
            assert not heard

    await sync_to_async(roll_back)()
    await sync_to_async(commit)()
    await world.bob.closed(ENDED)
    assert b"".join(heard).decode() == f"ended {session_digest(world.bob.key)}"
    assert world.ann.codes == []


async def test_broadcast_gives_nothing_away(world: World) -> None:
    heard: list[bytes] = []
    world.hubs[0].broker.listen(TOPIC, heard.append)
    ann, key = await get_user_model().objects.aget(username="ann"), world.laptop.key
    await sync_to_async(world.laptop.client.post)("/logout/")
    await new_password(ann)
    await world.ann.closed(ENDED)
    text = b"\n".join(heard).decode()
    for secret in (key, "ann", ann.get_session_auth_hash(), ann.password):
        assert secret not in text
    for line in text.splitlines():
        notice, *digests = line.split()
        assert notice in list(Notice)
        assert all(len(digest) == 64 for digest in digests)


async def test_proxy_models_of_the_user_are_heard(world: World) -> None:
    class Customer(get_user_model()):  # type: ignore[misc]
        class Meta:
            proxy = True
            app_label = "auth"

    receivers.connect()
    customer = await Customer.objects.aget(username="ann")
    await deactivate(customer)
    await world.ann.closed(ENDED)


async def test_socket_let_in_just_before_a_log_out_does_not_live_on(world: World) -> None:
    """It missed the broadcast: its handshake was not over yet."""
    scope = {
        "headers": [(b"cookie", f"sessionid={world.ann.key}".encode())],
        "url_route": {"kwargs": {"service": "orders"}},
    }
    identity = await SessionIdentity().resolve(scope)
    assert identity is not None
    await sync_to_async(world.ann.client.post)("/logout/")
    await world.ann.closed(ENDED)
    late: list[int] = []
    await world.open(world.hubs[0], identity, late)
    await until(lambda: late, what="the late socket is closed")


def test_log_out_without_a_broker_succeeds_at_once(
    settings: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    settings.WSGATEWAY_BROKER_TIMEOUT = 1.0
    began = time.monotonic()
    receivers.on_log_out(request=SimpleNamespace(session=SimpleNamespace(session_key="abc")))
    assert time.monotonic() - began < 1.0
    receivers.announcer.finish()
    wait_for(lambda: "could not tell the gateways that 1 logins changed" in caplog.text)
    assert "abc" not in caplog.text


def test_changes_that_wait_for_the_broker_are_bounded_and_none_is_dropped_in_silence(
    settings: Any, free_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.5
    monkeypatch.setattr(receivers, "MAX_PENDING", 3)
    announcer, said = receivers.Announcer(), re.compile(r"that \d logins")
    for number in range(8):
        announcer.say(f"changed {number}")
    announcer.finish()
    wait_for(lambda: {"that 3 logins", "that 5 logins"} <= set(said.findall(caplog.text)))


def test_saving_a_user_starts_no_server(settings: Any, tmp_path: Any) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = ""
    settings.DEBUG = True
    settings.WSGATEWAY_EMBEDDED_STORE = str(tmp_path / "store")
    user = get_user_model().objects.create_user("ann")
    user.save()
    receivers.announcer.finish()
    assert not (tmp_path / "store").exists()


# -- found by asking -----------------------------------------------------------------------------


@pytest.fixture
def soon(engine: str, nats_settings: Any) -> Any:
    """Gateways ask often."""
    nats_settings.WSGATEWAY_REVALIDATE_INTERVAL = 0.3
    return nats_settings


def sql(text: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(text, parameters)


@pytest.mark.usefixtures("tokens", "soon")
async def test_gateway_that_missed_the_broadcast_finds_tokens_that_are_void(world: World) -> None:
    """It was reconnecting to NATS, or the socket's handshake was not over yet."""
    ann, bob = world.users["ann"], world.users["bob"]
    codes: dict[str, list[int]] = {"ann": [], "bob": []}
    for user in (ann, bob):
        identity = await resolve_identity(jwt_scope(user))
        await world.open(world.hubs[0], identity, codes[user.username])
    broker = world.hubs[1].broker
    await void_tokens(broker, str(ann.pk))
    await until(lambda: codes["ann"], what="the token's socket is closed")
    assert codes == {"ann": [ENDED], "bob": []}
    assert world.ann.codes == []


@pytest.mark.usefixtures("soon")
class TestAsking:
    @on(*ENGINES)
    async def test_user_deactivated_without_a_signal(self, world: World, engine: str) -> None:
        await get_user_model().objects.filter(username="ann").aupdate(is_active=False)
        await world.ann.closed(ENDED)
        await world.laptop.closed(ENDED)
        assert world.bob.codes == []

    @each_engine(ENDED)
    async def test_password_changed_without_a_signal(self, world: World, code: CloseCode) -> None:
        await get_user_model().objects.filter(username="ann").aupdate(password="x")
        await world.ann.closed(code)
        assert world.bob.codes == []

    async def test_password_change_in_the_middle_of_asking(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the new password and the new session the old session looked revoked."""
        request, user = world.ann.request, world.users["ann"]
        asked: list[bool] = []
        real = revocation.areasons_to_close
        one_gateway = asyncio.Lock()  # the other one's question comes afterwards

        async def ask(identities: Any) -> Any:
            async with one_gateway:
                found = await real(identities)
                if not asked:
                    assert ENDED in found
                    await sync_to_async(update_session_auth_hash)(request, user)
                asked.append(True)
            return found

        user.set_password("new")
        monkeypatch.setattr(revocation, "areasons_to_close", ask)
        await get_user_model().objects.filter(pk=user.pk).aupdate(password=user.password)
        await world.ann.closed(CHANGED)

    async def test_user_deleted_by_sql(self, world: World) -> None:
        await sync_to_async(sql)("delete from auth_user where username = 'ann'")
        await world.ann.closed(ENDED)
        assert world.bob.codes == []

    async def test_session_deleted_by_sql(self, world: World) -> None:
        """It may have been rotated: the client comes back, and the handshake decides."""
        key = world.ann.key
        await sync_to_async(sql)("delete from django_session where session_key = %s", key)
        await world.ann.closed(CHANGED)
        assert world.laptop.codes == world.bob.codes == []

    async def test_session_expired(self, world: World) -> None:
        key = world.ann.key
        await Session.objects.filter(pk=key).aupdate(expire_date="2020-01-01T00:00:00Z")
        await world.ann.closed(ENDED)
        await sync_to_async(session_store().clear_expired)()
        assert world.laptop.codes == world.bob.codes == []

    @on("cache", "file")
    async def test_session_gone_from_where_it_is_kept(self, world: World, engine: str) -> None:
        await sync_to_async(lambda: world.ann.request.session.delete())()
        await world.ann.closed(CHANGED)
        assert world.laptop.codes == world.bob.codes == []

    async def test_token_expired(self, world: World) -> None:
        token = make_token("orders", "robot", max_age=0.2)
        scope = {"headers": [], "query_string": f"token={token}".encode()}
        identity = await TokenIdentity().resolve(scope)
        assert identity is not None
        codes: list[int] = []
        await world.open(world.hubs[0], identity, codes)
        await until(lambda: codes, what="the token's socket is closed")
        assert codes == [ENDED]

    async def test_database_that_fails_ends_no_socket(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("wsgateway.gateway.revocation.RETRY", 0.1)
        working = "wsgateway.gateway.revocation.areasons_to_close"

        async def fail(identities: Any) -> Any:
            raise OSError("no route to the database")

        with monkeypatch.context() as patch:
            patch.setattr(working, fail)
            await get_user_model().objects.filter(username="ann").aupdate(is_active=False)
            text = "cannot check the logins of open sockets now: no route to the database"
            await until(lambda: caplog.text.count(text) >= 3, what="it says so")
            assert world.ann.codes == world.bob.codes == []
        await world.ann.closed(ENDED)
        assert world.bob.codes == []

    async def test_backend_with_a_get_user_of_its_own_is_asked(
        self, world: World, soon: Any
    ) -> None:
        path = f"{__name__}.Directory"
        soon.AUTHENTICATION_BACKENDS = [path]
        Directory.members = {world.users["ann"].pk, world.users["bob"].pk}
        user_ids = {name: str(user.pk) for name, user in world.users.items()}
        codes: dict[str, list[int]] = {"ann": [], "bob": []}
        for name, user_id in user_ids.items():
            identity = Identity("orders", name, user_id=user_id, backend=path)
            await world.open(world.hubs[0], identity, codes[name])
        Directory.members = {world.users["bob"].pk}
        await until(lambda: codes["ann"], what="ann is no longer a member")
        assert codes == {"ann": [ENDED], "bob": []}


class Directory(ModelBackend):
    """Users are kept elsewhere."""

    members: ClassVar[set[int]] = set()

    def get_user(self, user_id: int) -> Any:
        return get_user_model()(pk=user_id) if user_id in self.members else None


async def test_one_query_for_many_sockets(world: World, django_assert_num_queries: Any) -> None:
    browsers = (world.ann, world.laptop, world.bob)
    identities = [await resolve_identity(browser.scope) for browser in browsers] * 100

    def ask() -> None:
        with django_assert_num_queries(2):
            assert reasons_to_close(identities) == [None] * 300

    await sync_to_async(ask)()


async def test_forged_broadcast_closes_nothing(world: World) -> None:
    broker, user_id = world.hubs[0].broker, str(world.users["ann"].pk)
    lines = [
        "ended",
        "ended " + "0" * 64,
        f"ended {user_id}",
        "replaced x y",
        "\ufffd\x00",
        f"unknown {user_digest(user_id)}",
        f"{Notice.CHANGED} {user_digest(user_id)}",
    ]
    checks = count_checks(world)
    broker.broadcast(TOPIC, "\n".join(lines).encode())
    broker.broadcast(TOPIC, b"\xff\xfe")
    await until(lambda: sum(checks) >= 4, what="the last line is a question")
    assert world.ann.codes == world.laptop.codes == world.bob.codes == []
