"""The admin with unusual settings, and with names and payloads that somebody made up to harm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import path, reverse
from django.utils import timezone

from wsgateway import send
from wsgateway.admin import GatewayAdmin, OverviewAdmin, ServiceAdmin
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.work import Job
from wsgateway.models import GatewayEntry, InboxEntry, Overview, ServiceEntry
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.deadletters import set_aside

pytestmark = pytest.mark.django_db

ROOT = "/admin/wsgateway/"
MODELS = (
    "overview",
    "serviceentry",
    "gatewayentry",
    "streamentry",
    "deadletterentry",
    "inboxentry",
)
SCRIPT = "<script>alert(1)</script>"
TURNED = "\u202egnp.exe"
NAMES = [SCRIPT, TURNED, "a/b ?c#d%2F.é", "line\nbreak", "null\0", "..", "*", ">", "x" * 200]


@pytest.fixture
def root(client: Client, settings: Any) -> Client:
    settings.WSGATEWAY_SERVICES = ["orders", "demo"]
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    return client


@pytest.fixture
def queued() -> None:
    """A message that waits for a service, and a dead letter, both of a user with a bad name."""

    async def queue(broker: Broker) -> None:
        inbox = Inbox("orders", SCRIPT)
        await broker.offer(inbox, Frame.of(SCRIPT), "1")
        job = Job(inbox, f"{SCRIPT}{TURNED}".encode(), {"x": SCRIPT}, sequence=1, id="S.1")
        await set_aside(broker, job, ValueError(f"{SCRIPT}{TURNED}"))

    runtime.call_sync(queue)


# What another site of the admin shows, which has not all pages
ops = AdminSite(name="ops")
ops.register(Overview, OverviewAdmin)
ops.register(ServiceEntry, ServiceAdmin)
ops.register(GatewayEntry, GatewayAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("ops/", ops.urls)]


def page_of(name: str) -> str:
    key = InboxEntry.of(Inbox("orders", name)).pk
    return reverse("admin:wsgateway_inboxentry_websockets", args=[quote(key)])


def pages() -> Iterator[str]:
    yield from (f"{ROOT}{model}/" for model in MODELS)
    yield from (f"{ROOT}{model}/orders/change/" for model in ("serviceentry", "streamentry"))
    yield from (f"{ROOT}deadletterentry/{offset}/change/" for offset in (1, "٣", 9**19))
    for name in NAMES:
        page = page_of(name)
        yield from (page, f"{page}?since=2020-01-01T00:00&until=2999-01-01T00:00")
        yield from (f"{page}?since=0001-01-01T00:00", f"{page}?until=9999-12-31T23:59")
        yield from (f"{page}?before=18446744073709551615", f"{page}?after=0&service=%00")
        yield from (f"{page}{each}/?offset=1" for each in ("message", "delete", "purge"))
        yield from (f"{page}disconnect/", f"{page.removesuffix('websockets/')}history/")


USUAL: dict[str, Any] = {}
UTC_ONLY = {"USE_TZ": False, "TIME_ZONE": "Asia/Tokyo"}
GROUPED = {"LANGUAGE_CODE": "de", "USE_THOUSAND_SEPARATOR": True}


@pytest.mark.parametrize("broker", ["memory", "nats"])
@pytest.mark.parametrize("changed", [USUAL, UTC_ONLY, GROUPED], ids=["usual", "no-tz", "grouped"])
def test_no_page_fails_or_shows_markup(
    broker: str, changed: dict[str, Any], settings: Any, request: pytest.FixtureRequest
) -> None:
    """Without USE_TZ, ages compared an aware time with a naive one, and the pages failed."""
    if broker == "nats":
        request.getfixturevalue("nats_settings")
    for name, value in changed.items():
        setattr(settings, name, value)
    root: Client = request.getfixturevalue("root")
    request.getfixturevalue("queued")
    for name in NAMES:
        send("orders", name, text=SCRIPT)
    for url in pages():
        answer = root.get(url)
        assert answer.status_code in (200, 302, 404), url
        html = answer.content.decode()
        assert SCRIPT not in html, url
        assert "\u202e" not in html, url


def test_times_are_the_sites_without_use_tz(root: Client, settings: Any) -> None:
    """They were shown in UTC, while the filter by time took the site's."""
    settings.USE_TZ, settings.TIME_ZONE = False, "Asia/Tokyo"
    send("orders", "ann", text="hello")
    html = root.get(page_of("ann")).content.decode()
    shown = re.search(r'data-label="Stored">([^<]*)<', html)
    assert shown is not None
    stored = datetime.fromisoformat(shown[1])
    assert abs((timezone.now() - stored).total_seconds()) < 60
    for query, there in (({"until": shown[1]}, False), ({"since": shown[1]}, True)):
        page = root.get(page_of("ann"), query).content.decode()
        assert ("<code>hello</code>" in page) is there


def test_log_takes_every_name(root: Client) -> None:
    """PostgreSQL refuses null characters: the action was done, then the page failed."""
    name = f"null\0{TURNED}"
    send("orders", name, text="hello")
    root.post(f"{page_of(name)}purge/?service=orders", {"confirmed": "yes"})
    page = f"/admin/auth/user/{get_user_model()._default_manager.get().pk}/websockets/"
    root.post(f"{page}purge/?service=nul%00l", {"confirmed": "yes"})
    first, second = LogEntry.objects.order_by("id")
    assert first.object_repr == "null\\u0000\\u202egnp.exe at orders"
    assert "Purged the inbox of nul\\u0000l" in second.get_change_message()


@pytest.mark.parametrize(
    "page", ["overview/", "serviceentry/", "serviceentry/orders/change/", "gatewayentry/"]
)
def test_pages_that_are_linked_need_not_be_registered(
    page: str, settings: Any, queued: None, root: Client
) -> None:
    """A dead letter, or a user who is online, made the page fail."""
    settings.ROOT_URLCONF = __name__
    answer = root.get(f"/ops/wsgateway/{page}")
    assert answer.status_code == 200
    assert "/deadletterentry/" not in answer.content.decode()


def test_drain_page_stays_on_its_site(settings: Any, root: Client) -> None:
    """It led to Django's default site."""
    settings.ROOT_URLCONF = __name__
    html = root.get("/ops/wsgateway/gatewayentry/some-1-abcd/drain/").content.decode()
    assert "/ops/wsgateway/gatewayentry/some-1-abcd/change/" in html
    assert "/admin/" not in html.replace("/static/admin/", "")


def test_drain_wants_the_permission_to_look(client: Client) -> None:
    """Like every other action."""
    user = get_user_model()._default_manager.create_user("staff", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="drain_gateway"))
    client.force_login(user)
    url = f"{ROOT}gatewayentry/some-1-abcd/drain/"
    assert client.get(url).status_code == 403
    assert client.post(url, {"confirmed": "yes"}).status_code == 403


@pytest.mark.parametrize("name", ["nul%00l", "x" * 300, "a.b", "*"])
def test_gateway_that_cannot_be_is_not_in_the_log(name: str, root: Client) -> None:
    """The log had that draining it was tried; with a null character, PostgreSQL refused that."""
    url = f"{ROOT}gatewayentry/{name}/drain/"
    assert root.post(url, {"confirmed": "yes"}).status_code == 404
    assert not LogEntry.objects.exists()


def test_dead_letter_has_the_time_that_the_list_shows(queued: None, root: Client) -> None:
    """It was written with nanoseconds."""
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d<"
    listed = re.search(time, root.get(f"{ROOT}deadletterentry/").content.decode())
    shown = re.search(time, root.get(f"{ROOT}deadletterentry/1/change/").content.decode())
    assert listed is not None
    assert shown is not None
    assert listed[0] == shown[0]
