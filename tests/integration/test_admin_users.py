"""Users in the admin: the list, the page of a user or another identity, and what staff do there."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.testing import WebsocketCommunicator
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.contrib.messages import get_messages
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.test import AsyncClient, Client
from django.urls import reverse
from django.utils.http import urlencode
from websockets.sync.client import ClientConnection, connect

from project.asgi import application
from tests.support import ROOT, Gateway, site_env, wait_for
from wsgateway import presence, send
from wsgateway.admin import users
from wsgateway.broker import runtime
from wsgateway.exceptions import IdentityRefused
from wsgateway.identity import Identity, SessionIdentity, TokenIdentity, make_token
from wsgateway.identity.voiding import require_valid_token
from wsgateway.logins import end_sessions, session_store
from wsgateway.models import InboxEntry
from wsgateway.protocol.subjects import Inbox

pytestmark = pytest.mark.django_db

LIST = "/admin/auth/user/"
STRANGE = "a/b ?c#d%2F.é@x+y_z"
ALL = ("view_user", "view_inbox", "send_message", "delete_message", "disconnect_socket")


@pytest.fixture(autouse=True)
def _services(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["orders", "demo"]


@pytest.fixture
def root(client: Client) -> Client:
    """A superuser's browser."""
    client.force_login(get_user_model().objects.create_superuser("root"))
    return client


@pytest.fixture(params=["memory", "nats"])
def root_of_each(request: pytest.FixtureRequest) -> Client:
    """The same, with each broker."""
    if request.param == "nats":
        request.getfixturevalue("nats_settings")
    client: Client = request.getfixturevalue("root")
    return client


Open = Callable[..., ClientConnection]


@pytest.fixture
def open_socket(gateway_factory: Callable[..., Gateway], nats_settings: Any) -> Iterator[Open]:
    """Open a socket at a gateway: ``open_socket("orders", "ann", device="phone")``."""
    gateway = gateway_factory(SECRET_KEY=nats_settings.SECRET_KEY, WSGATEWAY_SERVICES="orders,demo")

    def open_one(
        service: str, user: str, device: str = "default", at: Gateway = gateway
    ) -> ClientConnection:
        query = f"?token={make_token(service, user)}&device={device}"
        opening = connect(
            at.ws(f"/ws/{service}/") + query,
            subprotocols=["wsgateway.v1"],  # type: ignore[list-item]
            user_agent_header="Test <b>browser</b>",
            proxy=None,
        )
        socket = stack.enter_context(opening)
        opened[service, user] += 1
        wait_for(lambda: len(presence.connections(service, user)) == opened[service, user])
        return socket

    opened: Counter[tuple[str, str]] = Counter()
    with ExitStack() as stack:
        yield open_one


def create(name: str, **fields: Any) -> Any:
    return get_user_model().objects.create_user(name, **fields)


def staff(*codenames: str) -> Client:
    """Return the browser of a member of staff with these permissions."""
    user = create("staff", is_staff=True)
    permissions = Permission.objects.filter(codename__in=codenames)
    assert len(permissions) == len(codenames)
    user.user_permissions.set(permissions)
    browser = Client()
    browser.force_login(user)
    return browser


def identity_with_token(user: Any) -> Identity:
    """Return whom a token of *user* lets in."""
    scope = {"headers": [], "query_string": f"token={make_token('orders', user)}".encode()}
    identity = async_to_sync(TokenIdentity().resolve)(scope)
    assert identity is not None
    return identity


def page_of(user: Any) -> str:
    return f"{LIST}{user.pk}/websockets/"


def page_at(service: str, name: str) -> str:
    entry = InboxEntry.of(Inbox(service, name))
    return reverse("admin:wsgateway_inboxentry_websockets", args=[quoted(entry.pk)])


def quoted(key: str) -> str:
    from django.contrib.admin.utils import quote

    return str(quote(key))


def text_of(html: str) -> str:
    """Return what one reads of a page."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def read(client: Client, url: str, **query: Any) -> str:
    answer = client.get(url, query)
    assert answer.status_code == 200
    return text_of(answer.content.decode())


def row(page: str, name: str) -> str:
    """Return the row of the list of users that begins with *name*."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    found = [text_of(each).replace("&nbsp;", "") for each in rows]
    return next(each for each in found if each.startswith(f"{name} "))


def standing(page: str, name: str) -> str:
    """Return what the columns say of a user who has no e-mail address."""
    return row(page, name).removeprefix(f"{name} ").removesuffix(" - - -")


def kept(service: str, name: str) -> list[bytes]:
    async def read_all(broker: Any) -> Any:
        return await broker.inboxes.read_after(Inbox(service, name), 0, limit=1000)

    return [message.payload for message in runtime.call_sync(read_all).messages]


def log_of(entry: Any) -> list[str]:
    found = LogEntry.objects.filter(object_id=str(entry.pk)).order_by("pk")
    return [each.get_change_message() for each in found]


# -- the list ------------------------------------------------------------------------------


def test_list_shows_who_is_online_and_what_waits(root: Client, open_socket: Open) -> None:
    ann, bob, strange = create("ann"), create("bob"), create(STRANGE)
    for _ in range(2):
        open_socket("orders", "ann")
    open_socket("demo", STRANGE)
    for number in range(3):
        send("orders", "bob", text=str(number))
    send("demo", "bob", text="4")
    page = root.get(LIST).content.decode()
    assert standing(page, "ann") == "online 2 0 now"
    assert standing(page, "bob") == "offline 0 4 -"
    assert standing(page, STRANGE) == "online 1 0 now"
    for user in (ann, bob, strange):
        assert f'href="{page_of(user)}"' in page


def test_filter_shows_only_those_who_are_online(root: Client, open_socket: Open) -> None:
    for name in ("ann", "bob", "carl", STRANGE):
        create(name)
    open_socket("orders", "ann")
    open_socket("demo", STRANGE)
    open_socket("demo", "no Django user")
    page = read(root, LIST, online="yes")
    assert "2 users" in page
    assert "bob" not in page
    assert "ann" in page
    assert "1 user" in read(root, LIST, online="yes", q="ann")
    assert "2 users" in read(root, LIST, online="yes", _facets="True")


def test_list_asks_the_database_no_more_often_for_more_users(
    root: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(100):
        create(f"user{number}")
    with django_assert_max_num_queries(8):
        root.get(LIST)
    with django_assert_max_num_queries(8):
        root.get(LIST, {"online": "yes"})


def test_list_without_the_permission_is_as_before() -> None:
    create("ann")
    browser = staff("view_user")
    page = browser.get(LIST).content.decode()
    assert "Last seen" not in page
    assert "websockets" not in page
    assert "online" not in page.lower()
    page = browser.get(f"{LIST}{create('bob').pk}/change/").content.decode()
    assert "websockets" not in page.lower()


def test_columns_may_be_placed_by_the_project(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.contrib import admin

    registered = admin.site.get_model_admin(get_user_model())
    assert isinstance(registered, users.GatewayUserMixin)
    monkeypatch.setattr(type(registered), "list_display", ("username", "gateway_waiting", "email"))
    heads = re.findall(r'<th scope="col" class="[^"]*column-(\w+)', root.get(LIST).content.decode())
    assert heads == [
        "username",
        "gateway_online",
        "gateway_sockets",
        "gateway_last_seen",
        "gateway_waiting",
        "email",
    ]


def test_form_of_a_user_leads_to_the_page(root: Client) -> None:
    ann = create("ann")
    page = root.get(f"{LIST}{ann.pk}/change/").content.decode()
    assert f'<a href="{page_of(ann)}">Websockets</a>' in page
    assert "History" in page
    assert "id_username" in page


def test_admin_of_the_project_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib import admin
    from django.contrib.auth.admin import UserAdmin

    class OwnAdmin(UserAdmin):  # type: ignore[type-arg]
        pass

    site, model = admin.AdminSite(), get_user_model()
    monkeypatch.setattr("django.contrib.admin.site", site)
    site.register(model, OwnAdmin)
    users.take_over_stock_admin()
    assert type(site.get_model_admin(model)) is OwnAdmin
    site.unregister(model)
    site.register(model, UserAdmin)
    users.take_over_stock_admin()
    found = site.get_model_admin(model)
    assert isinstance(found, users.GatewayUserMixin)
    assert isinstance(found, UserAdmin)


def test_mixin_behind_the_class_that_it_extends_is_refused() -> None:
    """It did nothing, and nobody said so."""
    from django.contrib.auth.admin import UserAdmin

    with pytest.raises(ImproperlyConfigured, match=r"class Wrong\(GatewayUserMixin, …\)"):

        class Wrong(UserAdmin, users.GatewayUserMixin):  # type: ignore[type-arg]
            pass


class ByEmail(SessionIdentity):
    """Names users by their e-mail address, and leaves the admin to find them."""

    def user_name(self, user: Any) -> str:
        return str(user.email)

    def get_user(self, name: str) -> Any:
        return get_user_model().objects.get(email=name)


class ByEmailAtOnce(ByEmail):
    def users_named(self, users: Any, names: Any) -> Any:
        return users.filter(email__in=names)


@pytest.mark.parametrize("resolver", [ByEmail, ByEmailAtOnce])
def test_users_are_named_as_their_resolver_names_them(
    root: Client, open_socket: Open, settings: Any, resolver: type
) -> None:
    path = f"{__name__}.{resolver.__name__}"
    settings.WSGATEWAY_IDENTITY = ["wsgateway.identity.TokenIdentity", path]
    ann, _ = create("ann", email="ann@example.com"), create("bob", email="bob@example.com")
    nobody = create("nobody")
    open_socket("orders", "ann@example.com")
    page = root.get(LIST).content.decode()
    assert row(page, "ann").startswith("ann online 1 0 now ")
    assert standing(page, "nobody") == "unknown unknown unknown unknown"
    assert "1 user" in read(root, LIST, online="yes")
    assert "Django user" in read(root, page_at("orders", "ann@example.com"))
    assert "State online" in read(root, page_of(ann))
    assert "has no inbox" in read(root, page_of(nobody))


# -- when the broker is away ---------------------------------------------------------------


@pytest.fixture
def away(settings: Any, free_port: int) -> Any:
    """A broker that cannot be reached."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.5
    return settings


def test_pages_show_unknown_quickly_while_the_broker_is_away(away: Any, root: Client) -> None:
    ann = create("ann")
    begin = time.monotonic()
    page = root.get(LIST).content.decode()
    assert standing(page, "ann") == "unknown unknown unknown unknown"
    assert "Cannot reach NATS" in page
    page = read(root, LIST, online="yes")
    assert "Cannot reach NATS" in page
    assert "0 users" in page
    for url in (page_of(ann), page_at("orders", "ann"), "/admin/wsgateway/inboxentry/"):
        page = read(root, url)
        assert "cannot reach NATS" in page.replace("C", "c")
        assert "unknown" in page.lower() or "inboxentry" in url
        assert "No open sockets" not in page
        assert "No messages" not in page
    assert time.monotonic() - begin < 8


def test_pages_show_unknown_quickly_while_the_broker_is_frozen(
    root: Client, own_server: Any, settings: Any, prefix: str
) -> None:
    """Connected, but without an answer."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    settings.WSGATEWAY_PREFIX = prefix
    ann = create("ann")
    send("orders", "ann", text="x")
    own_server.pause()
    try:
        for url in (LIST, f"{LIST}?online=yes", page_of(ann), page_at("orders", "ann")):
            begin = time.monotonic()
            answer = root.get(url)
            assert time.monotonic() - begin < 6, url  # two deadlines, on a busy machine
            assert answer.status_code == 200
            assert "answer within" in answer.content.decode()
            assert "No open sockets" not in answer.content.decode()
    finally:
        own_server.resume()
    wait_for(lambda: standing(root.get(LIST).content.decode(), "ann") == "offline 0 1 -")
    runtime.stop_background()


def test_actions_say_that_the_broker_is_away(away: Any, root: Client) -> None:
    away.WSGATEWAY_PUBLISH_TIMEOUT = 0.5
    ann = create("ann")
    yes = {"confirmed": "yes"}
    for action, data in {
        "delete/?service=orders&offset=1": yes,
        "purge/?service=orders": yes,
        "disconnect/": yes,
        "disconnect/?service=orders": {"connection": "c1"},
    }.items():
        answer = root.post(f"{page_of(ann)}{action}", data, follow=True)
        assert answer.status_code == 200
        assert "Cannot reach NATS" in answer.content.decode()
    answer = root.post(f"{page_of(ann)}send/", message("kept in the form"))
    assert answer.status_code == 200
    assert "kept in the form</textarea>" in answer.content.decode()
    assert len(log_of(ann)) == 5
    assert all("not confirmed" in text for text in log_of(ann))


def test_user_of_a_frozen_gateway_is_unknown(
    root: Client, open_socket: Open, gateway_factory: Callable[..., Gateway], settings: Any
) -> None:
    for name in ("ann", "bob", "carl"):
        create(name)
    frozen = gateway_factory(SECRET_KEY=settings.SECRET_KEY, WSGATEWAY_SERVICES="orders,demo")
    for name in ("ann", "bob"):
        open_socket("orders", name, at=frozen)
    open_socket("orders", "ann")
    frozen.send(signal.SIGSTOP)
    try:
        page = root.get(LIST).content.decode()
        assert standing(page, "ann") == "online 1 0 now"
        assert standing(page, "bob") == "unknown unknown 0 -"
        assert standing(page, "carl") == "offline 0 0 -"
        (silent,) = presence.gateways().silent
        assert f"Gateway {silent} does not answer" in page
        assert "does not answer" in read(root, LIST, online="yes")
        page = read(root, page_at("orders", "bob"))
        assert f"Gateway {silent} does not answer" in page
        assert "Sockets unknown" in page
        assert "No open sockets" not in page
    finally:
        frozen.send(signal.SIGCONT)


# -- the page of a user --------------------------------------------------------------------


def test_page_shows_connections_and_devices(root: Client, open_socket: Open) -> None:
    ann = create("ann")
    phone = open_socket("orders", "ann", "phone")
    open_socket("demo", "ann", "tablet")
    offset = send("orders", "ann", text="hello").offset
    wait_for(lambda: '"hello"' in phone.recv(10))
    phone.send(f'{{"type":"ack","offset":{offset}}}')
    wait_for(lambda: f"phone 1 {offset} 0" in read(root, page_of(ann), service="orders"))
    page = read(root, page_of(ann), service="orders")
    assert "State online Sockets 2 Waiting 0 Last seen now" in page
    (found,) = presence.connections("orders", "ann")
    assert found.gateway in page
    assert "Test &lt;b&gt;browser&lt;/b&gt;" in page
    assert re.search(rf"127\.0\.0\.1 .* {offset} sent {offset} acknowledged 0 unack", page)
    assert "Devices of orders Device Sockets Received up to Waiting Saved phone" in page
    assert "Devices of demo" in read(root, page_of(ann), service="demo")


def test_page_of_a_name_that_looks_like_markup(root: Client, open_socket: Open) -> None:
    name = "<b>\u202e\"'&/..%00"
    send("orders", name, text="<script>alert(1)</script>")
    open_socket("orders", name, "<i>")
    answer = root.get(page_at("orders", name))
    html = answer.content.decode()
    assert "<script>alert" not in html
    assert "<i>" not in html
    assert name not in html
    page = text_of(html)
    assert "&lt;b&gt;\\u202e&quot;&#x27;&amp;/..%00 at orders" in page
    assert "Sockets 1" in page
    root.post(f"{page_at('orders', name)}purge/", {"confirmed": "yes"})
    assert kept("orders", name) == []


def test_messages_are_paged_from_the_newest(root_of_each: Client) -> None:
    ann = create("ann")
    for number in range(60):
        send("orders", "ann", text=f"number {number}!")
        send("orders", "bob", text="other")

    def shown(url: str) -> tuple[list[int], dict[str, str]]:
        html = root_of_each.get(url).content.decode().replace("&amp;", "&")
        links = re.findall(r'<a href="([^"]*)#inbox"[^>]*>(Newer|Older|Newest)</a>', html)
        return [int(n) for n in re.findall(r"number (\d+)!", html)], {b: a for a, b in links}

    numbers, links = shown(f"{page_of(ann)}?service=orders")
    assert numbers == list(range(59, 34, -1))
    assert set(links) == {"Older"}
    numbers, links = shown(links["Older"])
    assert numbers == list(range(34, 9, -1))
    assert set(links) == {"Older", "Newer", "Newest"}
    numbers, older = shown(links["Older"])
    assert numbers == list(range(9, -1, -1))
    assert set(older) == {"Newer", "Newest"}
    assert shown(older["Newer"])[0] == list(range(34, 9, -1))
    assert shown(links["Newer"])[0] == list(range(59, 34, -1))


def test_messages_of_a_time(root_of_each: Client) -> None:
    ann = create("ann")
    send("orders", "ann", text="first!")
    wait_for(lambda: time.time() % 1 < 0.5, what="a moment that is not the end of a second")
    time.sleep(1.1 - time.time() % 1)  # the filter knows whole seconds
    middle = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    send("orders", "ann", text="second!")
    query: dict[str, Any] = {"service": "orders"}
    page = read(root_of_each, page_of(ann), since=middle, **query)
    assert "second!" in page
    assert "first!" not in page
    page = read(root_of_each, page_of(ann), until=middle, **query)
    assert "first!" in page
    assert "second!" not in page
    page = read(root_of_each, page_of(ann), since="2999-01-01T00:00", **query)
    assert "No messages of this time" in page
    page = read(root_of_each, page_of(ann), since="nonsense", **query)
    assert "Enter a valid date/time" in page


def test_messages_are_readable(root_of_each: Client) -> None:
    ann = create("ann")
    send("orders", "ann", json={"a": [1, 2]})
    send("orders", "ann", bytes=b"\x00\xffbinary")
    long = send("orders", "ann", text="x" * 300_000).offset
    page = read(root_of_each, page_of(ann), service="orders")
    assert "{ &quot;a&quot;: [ 1, 2 ] }" in page
    assert "00 ff 62 69 6e 61 72 79" in page
    assert "x" * 3_000 not in page
    url = f"{page_of(ann)}message/"
    page = read(root_of_each, url, service="orders", offset=long)
    assert "x" * 256_000 in page
    assert "Only the beginning is shown" in page
    answer = root_of_each.get(url, {"service": "orders", "offset": str(long + 1)}, follow=True)
    assert "is not kept any more" in answer.content.decode()
    assert root_of_each.get(url, {"service": "orders"}).status_code == 400


def test_user_that_does_not_exist(root: Client) -> None:
    assert root.get(f"{LIST}99/websockets/").status_code == 404
    assert root.get(f"{LIST}nonsense/websockets/").status_code == 404
    assert root.get("/admin/wsgateway/inboxentry/nonsense/websockets/").status_code == 404
    assert root.get("/admin/wsgateway/inboxentry/a..b/websockets/").status_code == 404


def test_part_that_refreshes_is_without_the_rest(root: Client) -> None:
    answer = root.get(page_of(create("ann")), headers={"X-Wsgateway-Refresh": "1"})
    html = answer.content.decode()
    assert "Connections" in html
    assert "<html" not in html
    assert "Inbox" not in html


@pytest.mark.django_db(transaction=True)
async def test_sockets_are_shown_and_closed_with_the_memory_broker() -> None:
    client = WebsocketCommunicator(
        application,
        f"/ws/orders/?token={make_token('orders', 'ann')}&device=phone",
        headers=[(b"host", b"testserver")],
    )
    assert (await client.connect(10))[0]
    browser = AsyncClient()
    await browser.aforce_login(await get_user_model().objects.acreate_superuser("root"))
    page = page_at("orders", "ann")
    assert "online" in (await browser.get(page)).content.decode()
    (found,) = await presence.aconnections("orders", "ann")
    assert found.id in (await browser.get(page)).content.decode()
    await browser.post(f"{page}disconnect/", {"connection": found.id})
    assert (await client.receive_output(10))["code"] == 1008
    assert "No open sockets" in (await browser.get(page)).content.decode()


@pytest.mark.parametrize("engine", ["db", "cached_db"])
def test_sessions_end_wherever_they_are_kept(settings: Any, engine: str) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    ann, bob = create("ann"), create("bob")
    browsers = [Client() for _ in range(3)]
    for browser, user in zip(browsers, (ann, ann, bob), strict=True):
        browser.force_login(user)
    assert end_sessions(ann) == 2
    stores = [session_store()(browser.cookies["sessionid"].value) for browser in browsers]
    assert ["_auth_user_id" in store for store in stores] == [False, False, True]
    assert end_sessions(ann) == 0


# -- identities that are not Django users --------------------------------------------------


def test_identities_are_found_by_service_and_name(root: Client, open_socket: Open) -> None:
    send("orders", "device-1", text="hello")
    open_socket("orders", "device-2")
    open_socket("orders", "other")
    open_socket("demo", "device-3")
    url = "/admin/wsgateway/inboxentry/"
    page = root.get(url, {"service": "orders", "name": "dev"}).content.decode()
    assert "device-1 offline 0 1" in text_of(page)
    assert "device-2 online 1 0 now" in text_of(page)
    assert "other" not in page
    assert "device-3" not in page
    assert f'href="{page_at("orders", "device-1")}"' in page
    page = read(root, page_at("orders", "device-1"))
    assert "device-1 at orders" in page
    assert "hello" in page
    assert "Log out everywhere" not in page
    page = root.get(url, {"service": "orders", "name": "nobody"}).content.decode()
    assert "No identity of orders" in page
    assert page_at("orders", "nobody") in page
    assert "other" in read(root, url, service="orders")


def test_identities_are_paged(root_of_each: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgateway.admin.finding.LIMIT", 3)
    names = [f"name{number}" for number in range(7)] + [STRANGE]
    for name in names:
        send("orders", name, text="x")
    found: list[str] = []
    url: str | None = "/admin/wsgateway/inboxentry/?service=orders"
    while url:
        html = root_of_each.get(url).content.decode().replace("&amp;", "&")
        found += re.findall(r'<th scope="row" class="long"><a [^>]*>([^<]*)</a>', html)
        after = re.search(r'<a href="(\?[^"]*)" rel="next">', html)
        url = f"/admin/wsgateway/inboxentry/{after[1]}" if after else None
    assert found == sorted(names)


@pytest.mark.parametrize("name", ["x" * 300, "\0", "*", "a.>", "=2E", " ", "é" * 200])
def test_names_that_cannot_be_or_are_strange_are_searched(root_of_each: Client, name: str) -> None:
    url = "/admin/wsgateway/inboxentry/"
    assert root_of_each.get(url, {"service": "orders", "name": name}).status_code == 200
    assert root_of_each.get(url, {"service": name, "name": "ann"}).status_code == 200
    assert root_of_each.get(url, {"service": name, "name": name, "after": name}).status_code == 200
    page = page_of(create("ann"))
    assert root_of_each.get(page, {"service": name}).status_code == 200
    for action in ("purge/", "delete/?offset=1"):
        url = f"{page}{action}{'&' if '?' in action else '?'}{urlencode({'service': name})}"
        assert root_of_each.post(url, {"confirmed": "yes"}).status_code == 302
    answer = root_of_each.post(f"{page}send/", message("x", service=name))
    assert answer.status_code == 200


def test_identities_that_are_only_connected_are_paged(
    root: Client, open_socket: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was a link to a page without anybody."""
    monkeypatch.setattr("wsgateway.admin.finding.LIMIT", 2)
    for name in ("a", "a1", "a2", "b1", "b2"):
        open_socket("orders", name)
    send("orders", "a3", text="x")
    pages = []
    url = "/admin/wsgateway/inboxentry/?service=orders&name=a"
    while url:
        html = root.get(url).content.decode().replace("&amp;", "&")
        pages.append(re.findall(r'<th scope="row" class="long"><a [^>]*>([^<]*)</a>', html))
        after = re.search(r'<a href="(\?[^"]*)" rel="next">', html)
        url = f"/admin/wsgateway/inboxentry/{after[1]}" if after else ""
    assert pages == [["a", "a1"], ["a2", "a3"]]


def test_page_of_an_identity_is_the_one_of_its_service(root: Client) -> None:
    page = page_at("orders", "ann")
    answer = root.post(f"{page}purge/?service=demo", {"confirmed": "yes"})
    assert answer.status_code == 400
    assert root.post(f"{page}send/", message("x", service="demo")).status_code == 400


# -- doing something -----------------------------------------------------------------------


def message(content: str, **fields: str) -> dict[str, str]:
    return {
        "service": "orders",
        "kind": "text",
        "content": content,
        "ttl": "",
        "msg_id": f"admin.{zlib.crc32(content.encode())}",
        **fields,
    }


def test_message_is_sent(root_of_each: Client) -> None:
    ann = create("ann")
    answer = root_of_each.post(f"{page_of(ann)}send/", message("hi,\r\nAnn"), follow=True)
    assert "Sent message" in answer.content.decode()
    root_of_each.post(f"{page_of(ann)}send/", message("hi,\r\nAnn"))  # a double click
    root_of_each.post(f"{page_of(ann)}send/", message('{"a": 1.10}', kind="json", ttl="60"))
    assert kept("orders", "ann") == [b"hi,\nAnn", b'{"a": 1.10}']
    first, _ = log_of(ann)
    assert re.fullmatch(r"Sent message \d+ to orders, 7 bytes\.", first)
    assert "Ann" not in first


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"content": "{", "kind": "json"}, "This is not JSON"),
        ({"content": '{"a":1,"a":2}', "kind": "json"}, "a name is given twice"),
        ({"content": ""}, "This field is required"),
        ({"ttl": "0.5"}, "greater than or equal to 1"),
        ({"ttl": "nan"}, "Enter a number"),
        ({"msg_id": "line\nbreak"}, "Enter a valid value"),
        ({"content": "x" * 1_000_001}, "1,000,001 bytes"),
    ],
)
def test_message_that_cannot_be_sent(root: Client, fields: dict[str, str], complaint: str) -> None:
    ann = create("ann")
    answer = root.post(f"{page_of(ann)}send/", message("x") | fields)
    assert answer.status_code == 200
    assert complaint in answer.content.decode()
    assert kept("orders", "ann") == []
    assert log_of(ann) == []


def test_message_to_a_service_that_does_not_exist(root: Client) -> None:
    answer = root.post(f"{page_of(create('ann'))}send/", message("x", service="nowhere"))
    assert "does not exist" in answer.content.decode()


def test_deleting_asks_first(root_of_each: Client) -> None:
    ann = create("ann")
    one, _ = send("orders", "ann", text="one").offset, send("orders", "ann", text="two")
    url = f"{page_of(ann)}delete/?service=orders&offset={one}"
    page = root_of_each.get(url).content.decode()
    assert "cannot be restored" in page
    root_of_each.post(url)  # not confirmed
    assert kept("orders", "ann") == [b"one", b"two"]
    answer = root_of_each.post(url, {"confirmed": "yes"}, follow=True)
    assert f"Deleted message {one} of orders." in answer.content.decode()
    assert kept("orders", "ann") == [b"two"]
    answer = root_of_each.post(url, {"confirmed": "yes"}, follow=True)
    assert "is not kept any more" in answer.content.decode()
    assert log_of(ann) == [f"Deleted message {one} of orders."]


def test_purging_asks_first(root_of_each: Client) -> None:
    for number in range(3):
        send("orders", "ann", text=str(number))
    send("demo", "ann", text="stays")
    url = f"{page_at('orders', 'ann')}purge/"
    assert "cannot be restored" in root_of_each.get(url).content.decode()
    assert len(kept("orders", "ann")) == 3
    root_of_each.post(url, {"confirmed": "yes"})
    assert kept("orders", "ann") == []
    assert kept("demo", "ann") == [b"stays"]
    assert log_of(InboxEntry("orders.ann")) == ["Purged the inbox of orders: 3 message(s)."]


def test_one_socket_is_disconnected(root: Client, open_socket: Open) -> None:
    ann = create("ann")
    phone, tablet = open_socket("orders", "ann", "phone"), open_socket("orders", "ann", "tablet")
    by_device = {each.device: each for each in presence.connections("orders", "ann")}
    url = f"{page_of(ann)}disconnect/?service=orders"
    answer = root.post(url, {"connection": by_device["phone"].id}, follow=True)
    assert "1 closed" in answer.content.decode()
    assert close_code(phone) == 4505
    assert tablet.ping().wait(10)
    assert len(log_of(ann)) == 1


def test_all_sockets_are_disconnected_once_that_is_confirmed(
    root: Client, open_socket: Open
) -> None:
    ann = create("ann")
    sockets = [open_socket("orders", "ann"), open_socket("demo", "ann")]
    other = open_socket("orders", "bob")
    url = f"{page_of(ann)}disconnect/"
    assert "This closes all open sockets" in root.get(url).content.decode()
    root.post(url)
    assert sockets[0].ping().wait(10)
    root.post(url, {"confirmed": "yes"})
    assert [close_code(each) for each in sockets] == [4505, 4505]
    assert other.ping().wait(10)
    assert log_of(ann) == ["Disconnect all sockets: 2 closed."]


def close_code(socket: ClientConnection) -> int | None:
    def closed() -> bool:
        try:
            socket.recv(0.1)
        except TimeoutError:
            return False
        except Exception:
            return True
        return False

    wait_for(closed, 10)
    return socket.close_code


def test_user_is_logged_out_everywhere(root: Client, open_socket: Open) -> None:
    ann, bob = create("ann"), create("bob")
    browsers = [Client() for _ in range(3)]
    for browser, user in zip(browsers, (ann, ann, bob), strict=True):
        browser.force_login(user)
    socket = open_socket("orders", "ann")
    tokens = {user: identity_with_token(user) for user in (ann, bob)}
    url = f"{page_of(ann)}log_out/"
    assert "and closes all open sockets" in root.get(url).content.decode()
    root.post(url)
    assert Session.objects.count() == 4
    answer = root.post(url, {"confirmed": "yes"}, follow=True)
    assert "Logged out everywhere." in answer.content.decode()
    assert close_code(socket) == 4505
    left = {each.get_decoded()["_auth_user_id"] for each in Session.objects.all()}
    assert left == {str(bob.pk), root.session["_auth_user_id"]}
    assert log_of(ann)[0] == "Logged out everywhere."
    with pytest.raises(IdentityRefused, match="no longer valid"):
        runtime.call_sync(lambda broker: require_valid_token(broker, tokens[ann]))
    runtime.call_sync(lambda broker: require_valid_token(broker, tokens[bob]))


def test_sessions_end_even_if_the_broker_cannot_refuse_the_tokens(
    root: Client, settings: Any, free_port: int
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.3
    ann = create("ann")
    Client().force_login(ann)
    answer = root.post(f"{page_of(ann)}log_out/", {"confirmed": "yes"})
    texts = [str(each) for each in get_messages(answer.wsgi_request)]
    assert texts[0].startswith("All sessions have ended, but tokens may still be valid: ")
    left = {each.get_decoded()["_auth_user_id"] for each in Session.objects.all()}
    assert left == {root.session["_auth_user_id"]}
    assert log_of(ann)[0] == "Ended all sessions; tokens may still be valid."


def test_whoever_logs_themselves_out_everywhere_has_to_log_in(root: Client) -> None:
    """The answer tried to save the session that was gone, and was an error 400."""
    me = get_user_model().objects.get(username="root")
    assert "This is you" in root.get(f"{page_of(me)}log_out/").content.decode()
    answer = root.post(f"{page_of(me)}log_out/", {"confirmed": "yes"}, follow=True)
    assert answer.status_code == 200
    assert answer.redirect_chain[-1][0].startswith("/admin/login/")
    assert Session.objects.count() == 0
    assert len(log_of(me)) == 2


def test_sessions_that_nobody_can_list_are_not_offered_to_be_ended(
    root: Client, settings: Any
) -> None:
    ann = create("ann")
    assert "Log out everywhere" in root.get(page_of(ann)).content.decode()
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    browser = Client()
    browser.force_login(get_user_model().objects.get(username="root"))
    page = browser.get(page_of(ann)).content.decode()
    assert "Disconnect all" in page
    assert "Log out everywhere" not in page
    assert browser.get(f"{page_of(ann)}log_out/").status_code == 403


# -- permissions ---------------------------------------------------------------------------

ACTIONS = {
    "send/": ("send_message", "Send a message"),
    "delete/?service=orders&offset=1": ("delete_message", "delete/?service"),
    "purge/?service=orders": ("delete_message", "purge/?service"),
    "disconnect/": ("disconnect_socket", "Disconnect all"),
    "disconnect/?service=orders": ("disconnect_socket", "Disconnect all"),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("whose", ["user", "identity"])
def test_action_without_its_permission(action: str, whose: str) -> None:
    permission, sign = ACTIONS[action]
    offset = send("orders", "ann", text="kept").offset
    action = action.replace("offset=1", f"offset={offset}")
    ann = create("ann")
    browser = staff(*(name for name in (*ALL, "change_user") if name != permission))
    page = page_of(ann) if whose == "user" else page_at("orders", "ann")
    assert sign not in browser.get(page, {"service": "orders"}).content.decode()
    data = {"confirmed": "yes", "connection": "c1", **message("x")}
    assert browser.post(f"{page}{action}", data).status_code == 403
    assert browser.get(f"{page}{action}").status_code in (403, 405)
    assert kept("orders", "ann") == [b"kept"]
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("whose", ["user", "identity"])
def test_action_with_its_permission(action: str, whose: str) -> None:
    permission, sign = ACTIONS[action]
    offset = send("orders", "ann", text="kept").offset
    action = action.replace("offset=1", f"offset={offset}")
    ann = create("ann")
    browser = staff("view_user", "view_inbox", permission)
    page = page_of(ann) if whose == "user" else page_at("orders", "ann")
    assert sign in browser.get(page, {"service": "orders"}).content.decode()
    data = {"confirmed": "yes", **message("x")}
    assert browser.post(f"{page}{action}", data).status_code == 302
    assert LogEntry.objects.count() == 1


@pytest.mark.parametrize("lacking", ["view_inbox", "view_user"])
def test_nothing_is_seen_or_done_without_the_permission_to_look(lacking: str) -> None:
    offset = send("orders", "ann", text="secret").offset
    ann = create("ann")
    browser = staff(*(name for name in ALL if name != lacking))
    pages = [page_of(ann)]
    if lacking == "view_inbox":
        pages += [page_at("orders", "ann"), "/admin/wsgateway/inboxentry/"]
        pages += [f"{page_at('orders', 'ann')}message/?offset={offset}"]
        pages += ["/admin/wsgateway/inboxentry/orders.ann/change/"]
        pages += ["/admin/wsgateway/inboxentry/orders.ann/history/"]
    for page in pages:
        assert browser.get(page).status_code == 403
    assert browser.get(f"{page_of(ann)}message/?offset={offset}").status_code == 403
    for action in (*ACTIONS, "log_out/"):
        data = {"confirmed": "yes", **message("x")}
        assert browser.post(f"{page_of(ann)}{action}", data).status_code == 403
    assert kept("orders", "ann") == [b"secret"]


def test_logging_out_everywhere_wants_the_right_to_change_the_user() -> None:
    ann = create("ann")
    browser = staff(*ALL)
    assert "Log out everywhere" not in browser.get(page_of(ann)).content.decode()
    assert browser.post(f"{page_of(ann)}log_out/", {"confirmed": "yes"}).status_code == 403


def test_strangers_are_sent_to_the_login_page(client: Client) -> None:
    ann = create("ann")
    client.force_login(ann)  # not of the staff
    for url in (page_of(ann), page_at("orders", "ann"), f"{page_of(ann)}purge/?service=orders"):
        assert client.get(url).headers["location"].startswith("/admin/login/")
        assert client.post(url, {"confirmed": "yes"}).status_code == 302
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("action", [*ACTIONS, "log_out/"])
def test_request_of_another_site_does_nothing(action: str) -> None:
    send("orders", "ann", text="kept")
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(get_user_model().objects.create_superuser("root"))
    ann = create("ann")
    data = {"confirmed": "yes", **message("x")}
    assert browser.post(f"{page_of(ann)}{action}", data).status_code == 403
    answer = browser.get(f"{page_of(ann)}{action}", data)  # a link
    assert answer.status_code in (200, 405, 400)
    assert kept("orders", "ann") == [b"kept"]
    assert not LogEntry.objects.exists()


def test_log_leads_to_the_page_of_the_identity(root: Client) -> None:
    name = "strange/name_"
    root.post(f"{page_at('orders', name)}send/", message("x"))
    (entry,) = LogEntry.objects.all()
    assert str(entry) == f"Changed “{name} at orders” — Sent message 1 to orders, 1 bytes."
    answer = root.get(str(entry.get_admin_url()), follow=True)
    assert f"{name} at orders" in answer.content.decode()
    history = f"{page_at('orders', name).removesuffix('websockets/')}history/"
    assert "Sent message 1" in root.get(history).content.decode()


PROGRAM = """
import django; django.setup()
from tests.members_app.look import main; main()
"""


def test_own_users_on_an_own_admin_site() -> None:
    """UUIDs as keys, e-mail addresses as names, an admin class and an admin site of the project."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=site_env(DJANGO_SETTINGS_MODULE="tests.members_app.settings"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "row": "ann@example.com offline 0 1 -",
        "online": True,
        "form": True,
        "title": True,
        "inbox": True,
        "identity": True,
        "sent": ["hello", "again"],
        "log": ["Changed “ann@example.com” — Sent message 2 to orders, 5 bytes."],
    }
