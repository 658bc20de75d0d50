"""Resolvers that ask the database."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.db import DatabaseSyncToAsync
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import SynchronousOnlyOperation
from django.utils.functional import SimpleLazyObject
from websockets.exceptions import ConnectionClosed

from tests import resolvers
from tests.integration.test_service_users import message
from tests.support import ROOT, Gateway, site_env, until
from tests.troubleshooting import Symptom
from tests.unit.test_identity import log_in, scope
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.exceptions import IdentityRefused
from wsgateway.identity import Identity, SessionIdentity, resolve_identity
from wsgateway.logins import reasons_to_close
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import Inbox

Factory = Callable[..., Gateway]
V1: dict[str, Any] = {"subprotocols": ["wsgateway.v1"], "path": "/ws/orders/"}

MAKE_USERS = """
from django.contrib.auth.models import Group
from tests.unit.test_identity import log_in
from django.contrib.auth.models import User
print(log_in("ann"), log_in("bob"))
User.objects.get(username="ann").groups.add(Group.objects.create(name="crew"))
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """The URL of a database, and the sessions of ann, who is in the group crew, and of bob."""
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'db.sqlite3'}"
    env = site_env(DEBUG="1", SECRET_KEY="tests", DATABASE_URL=url)
    run = [sys.executable, "manage.py"]
    subprocess.run([*run, "migrate", "-v0"], cwd=ROOT, env=env, check=True)
    shell = [*run, "shell", "--no-imports", "-v0", "-c", MAKE_USERS]
    made = subprocess.run(shell, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    ann, bob = made.stdout.split()
    return url, ann, bob


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
@pytest.mark.parametrize("resolver", ["ByGroup", "ByGroupAsync", "ByKey"])
async def test_resolver_may_use_the_database(
    gateway_factory: Factory,
    broker: NatsBroker,
    database: tuple[str, str, str],
    server: str,
    resolver: str,
) -> None:
    """SynchronousOnlyOperation, and HTTP 500: user_name ran in the event loop."""
    url, ann, _ = database
    path = f"tests.resolvers.{resolver}"
    gateway = gateway_factory(server, DATABASE_URL=url, WSGATEWAY_IDENTITY=path)
    headers = {"Cookie": f"sessionid={ann}", "X-Key": "ann"}
    async with gateway.connect("orders", "crew", **V1, additional_headers=headers) as ws:
        assert json.loads(await ws.recv())["type"] == "welcome"
        await broker.publish(Inbox("orders", "crew"), b"hello", kind="text")
        assert json.loads(await ws.recv())["data"] == "hello"
    assert "Traceback" not in gateway.output


@pytest.mark.troubleshooting("user_name raised … this login has no usable name")
@pytest.mark.parametrize("resolver", ["ByGroup", "ByGroupAsync"])
async def test_user_without_a_name_is_refused(
    symptom: Symptom, gateway_factory: Factory, database: tuple[str, str, str], resolver: str
) -> None:
    url, _, bob = database
    path = f"tests.resolvers.{resolver}"
    gateway = gateway_factory(DATABASE_URL=url, WSGATEWAY_IDENTITY=path)
    headers = {"Cookie": f"sessionid={bob}"}
    async with gateway.connect("orders", "bob", **V1, additional_headers=headers) as ws:
        with pytest.raises(ConnectionClosed) as caught:
            await ws.recv()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == CloseCode.FORBIDDEN
    assert caught.value.rcvd.reason == "this login has no usable name"
    await until(lambda: symptom.is_in(gateway.output), what=symptom.text)
    want = f"{path}.user_name raised Group.DoesNotExist: Group matching query does not exist. "
    assert want in gateway.output
    assert "Traceback" not in gateway.output


async def end_of(gateway: Gateway, session: str, **options: Any) -> tuple[int, str]:
    headers = {"Cookie": f"sessionid={session}"}
    options = {**V1, **options}
    async with gateway.connect("orders", "ann", **options, additional_headers=headers) as ws:
        with pytest.raises(ConnectionClosed) as caught:
            await ws.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


@pytest.mark.troubleshooting("user_name returned … not a string")
@pytest.mark.parametrize("resolver", ["ByNumber", "ByNumberAsync"])
async def test_name_that_is_not_a_string_is_refused(
    symptom: Symptom, gateway_factory: Factory, database: tuple[str, str, str], resolver: str
) -> None:
    """HTTP 500, and a traceback that ended in "'int' object has no attribute 'encode'"."""
    url, ann, _ = database
    path = f"tests.resolvers.{resolver}"
    gateway = gateway_factory(DATABASE_URL=url, WSGATEWAY_IDENTITY=path)
    assert await end_of(gateway, ann) == (4503, "this login has no usable name")
    await until(lambda: symptom.is_in(gateway.output), what=symptom.text)
    assert re.search(rf"{path}.user_name returned \d+, not a string\. ", gateway.output)
    assert "Traceback" not in gateway.output


@pytest.mark.troubleshooting("resolve returned … not an Identity or None")
@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
async def test_resolver_that_returns_something_else(
    symptom: Symptom, gateway_factory: Factory, server: str
) -> None:
    """HTTP 500, and a traceback from within dataclasses."""
    gateway = gateway_factory(server, WSGATEWAY_IDENTITY="tests.resolvers.WrongType")
    assert await end_of(gateway, "") == (4018, "internal error")
    assert await end_of(gateway, "", subprotocols=None) == (1011, "internal error")
    await until(lambda: symptom.is_in(gateway.output), what=symptom.text)
    want = "with 4018: tests.resolvers.WrongType.resolve returned 'ann', not an Identity or None. "
    assert f"ERROR   wsgateway: refused a websocket at '/ws/orders/' {want}" in gateway.output
    assert "Traceback" not in gateway.output


@pytest.mark.troubleshooting("the resolver … raised")
async def test_resolver_that_raises(symptom: Symptom, gateway_factory: Factory) -> None:
    """HTTP 500, which a browser cannot read, and a traceback for each attempt."""
    path = "tests.resolvers.Broken"
    gateway = gateway_factory(WSGATEWAY_IDENTITY=path)
    for _ in range(3):
        assert await end_of(gateway, "") == (4018, "internal error")
    await until(lambda: "RuntimeError: a mistake" in gateway.output)
    assert symptom.is_in(gateway.output)
    assert f"with 4018: the resolver {path} raised RuntimeError. " in gateway.output
    assert gateway.output.count("Traceback") == gateway.output.count("ERROR") == 1


# -- in this process ---------------------------------------------------------------------------


def make_user(name: str, group: str | None = None) -> Any:
    user = get_user_model().objects.create_user(name)
    if group:
        user.groups.add(Group.objects.create(name=group))
    return user


@pytest.mark.django_db(transaction=True)
class TestHooks:
    async def test_user_that_middleware_has_not_loaded_yet(self) -> None:
        """Middleware of many projects leaves a lazy user in the scope; the loop loaded it."""
        await sync_to_async(make_user)("ann", "crew")
        lazy = SimpleLazyObject(lambda: get_user_model().objects.get(username="ann"))
        handshake = {**scope(service="s"), "session": SessionStore("k" * 32), "user": lazy}
        assert await SessionIdentity().resolve(handshake) == Identity("s", "ann")

    async def test_nobody_is_logged_in_if_middleware_says_so(self) -> None:
        key = await sync_to_async(log_in)("ann")
        handshake = {**scope(cookies=f"sessionid={key}", service="s"), "user": None}
        assert await SessionIdentity().resolve(handshake) is None

    @pytest.mark.parametrize("resolver", [SessionIdentity, resolvers.ByGroup])
    async def test_handshake_visits_the_thread_of_the_database_once(
        self, monkeypatch: pytest.MonkeyPatch, resolver: type[SessionIdentity]
    ) -> None:
        key = await sync_to_async(log_in)("ann")
        ann = await get_user_model().objects.aget(username="ann")
        await ann.groups.aadd(await Group.objects.acreate(name="ann"))
        visits = []
        handle = DatabaseSyncToAsync.thread_handler

        def count(*args: Any, **options: Any) -> Any:
            visits.append(1)
            return handle(*args, **options)

        monkeypatch.setattr(DatabaseSyncToAsync, "thread_handler", count)
        handshake = scope(cookies=f"sessionid={key}", service="s")
        assert await resolver().resolve(handshake) == Identity("s", "ann")
        assert len(visits) == 1

    @pytest.mark.parametrize("resolver", ["ByGroup", "ByGroupAsync"])
    async def test_handler_gets_the_user_whom_the_hooks_name(
        self, settings: Any, resolver: str
    ) -> None:
        path = f"tests.resolvers.{resolver}"
        settings.WSGATEWAY_IDENTITY = [path]
        ann = await sync_to_async(make_user)("ann", "crew")
        assert await message("crew", path).auser() == ann

    async def test_async_get_user_binds_an_identity_to_its_user(self, settings: Any) -> None:
        settings.WSGATEWAY_IDENTITY = [f"{__name__}.{ByHeader.__name__}"]
        ann = await sync_to_async(make_user)("ann", "crew")
        assert (await resolve_identity(scope())).user_id == str(ann.pk)

    def test_one_users_broken_name_does_not_keep_others_from_being_asked_about(
        self, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """No login was revoked by revalidation any more as long as one user_name failed."""
        broken, nameless = make_user("broken", "broken"), make_user("nameless")
        locked, fine = make_user("locked", "locked"), make_user("fine", "fine")
        get_user_model().objects.filter(pk=locked.pk).update(is_active=False)
        path = f"{__name__}.{Fragile.__name__}"
        users = (broken, nameless, locked, fine)
        identities = [
            Identity("orders", u.username, user_id=str(u.pk), resolver=path) for u in users
        ]
        assert reasons_to_close(identities) == [
            None,
            CloseCode.CREDENTIALS_CHANGED,
            CloseCode.NOT_AUTHENTICATED,
            None,
        ]
        assert f"{path}.user_name failed" in caplog.text


class ByHeader(resolvers.ByGroupAsync):
    async def resolve(self, scope: Any) -> Identity | None:
        return Identity("orders", "crew")


class Fragile(resolvers.ByGroup):
    def user_name(self, user: Any) -> str:
        name = super().user_name(user)
        if name == "broken":
            raise RuntimeError("a mistake")
        return name


@pytest.mark.troubleshooting("You cannot call this from an async context")
@pytest.mark.django_db(transaction=True)
async def test_synchronous_query_in_an_async_method(symptom: Symptom, settings: Any) -> None:
    settings.WSGATEWAY_IDENTITY = [f"{__name__}.{Blocking.__name__}"]
    await sync_to_async(make_user)("ann", "crew")
    handshake = scope(headers=[(b"x-key", b"ann")])
    with pytest.raises(IdentityRefused) as caught:
        await resolve_identity(handshake)
    assert isinstance(caught.value.__cause__, SynchronousOnlyOperation)  # its traceback is logged
    symptom.must_show_in(str(caught.value.__cause__))
    settings.WSGATEWAY_IDENTITY = ["tests.resolvers.ByKey"]
    assert await resolve_identity(handshake) == Identity("orders", "crew")


class Blocking(resolvers.ByKey):
    async def resolve(self, scope: Any) -> Identity | None:  # type: ignore[override]
        return super().resolve(scope)


async def test_async_name_that_does_not_exist_is_a_refusal() -> None:
    class Nameless(SessionIdentity):
        async def user_name(self, user: Any) -> str:
            raise Group.DoesNotExist("no such group")

    user = get_user_model()(username="ann")
    handshake = {**scope(service="s"), "session": SessionStore("k" * 32), "user": user}
    with pytest.raises(IdentityRefused) as caught:
        await Nameless().resolve(handshake)
    assert caught.value.reason == "this login has no usable name"
    assert "no such group" in caught.value.cause


async def test_text_of_a_wrong_object_is_not_asked_for(settings: Any) -> None:
    """It may cost a query, or hold a secret."""
    settings.WSGATEWAY_IDENTITY = ["tests.resolvers.WrongObject"]
    with pytest.raises(IdentityRefused) as caught:
        await resolve_identity(scope())
    assert "WrongObject.resolve returned a value of type User, not an" in caught.value.cause
