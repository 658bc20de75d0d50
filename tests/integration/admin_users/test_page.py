"""The admin's page of a user, and of an identity that is not a Django user."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth import get_user_model
from django.test import AsyncClient, Client
from django.utils.http import urlencode

from project.asgi import application
from tests.integration.admin_users.helpers import (
    LIST,
    STRANGE,
    Open,
    create,
    kept,
    message,
    page_at,
    page_of,
    read,
    text_of,
)
from tests.support import wait_for
from wsgateway import presence, send
from wsgateway.identity import make_token
from wsgateway.logins import end_sessions, session_store

pytestmark = pytest.mark.django_db


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
