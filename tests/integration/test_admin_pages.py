"""The admin's pages about services, gateways and streams, with real gateways and workers."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client

from tests.support import Gateway, Process, deaf_socket, running, wait_for
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.work import Job
from wsgateway.outbox.models import OutboxMessage
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.deadletters import set_aside

pytestmark = pytest.mark.django_db

Factory = Callable[..., Gateway]
MODELS = ("overview", "serviceentry", "gatewayentry", "streamentry", "deadletterentry")
ROOT = "/admin/wsgateway/"


@pytest.fixture
def root(client: Client) -> Client:
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    return client


@pytest.fixture
def staff(client: Client) -> Any:
    user = get_user_model()._default_manager.create_user("staff", is_staff=True)
    client.force_login(user)
    return user


def text_of(client: Client, page: str) -> str:
    """Return what a page of the admin says, its markup taken out."""
    response = client.get(ROOT + page)
    assert response.status_code == 200
    content = response.content.decode().partition('<div id="content-main">')[2]
    return " ".join(re.sub(r"<[^>]*>", " ", content).split())


def allow(user: Any, *names: str) -> None:
    user.user_permissions.add(*Permission.objects.filter(codename__in=names))


def send(service: str, user: str, text: str) -> None:
    """Do what a gateway does with a client's frame."""

    async def offer(broker: Broker) -> None:
        await broker.offer(Inbox(service, user), Frame.of(text), f"{user}-{text}")

    runtime.call_sync(offer)


async def bury(broker: Broker) -> None:
    """Make a dead letter."""
    job = Job(Inbox("orders", "ann"), b"{}", {}, sequence=1, id="S.1")
    await set_aside(broker, job, ValueError("bad"))


@pytest.mark.parametrize("model", MODELS)
def test_staff_without_the_right_see_nothing(
    nats_settings: Any, client: Client, staff: Any, model: str
) -> None:
    urls = [f"{ROOT}{model}/"]
    if model != "overview":
        urls += [
            f"{ROOT}{model}/1/change/",
            f"{ROOT}{model}/1/history/",
            f"{ROOT}{model}/1/delete/",
        ]
    for url in urls:
        assert client.get(url).status_code == 403, url
        assert client.post(url).status_code == 403, url
    allow(staff, f"view_{model}")
    assert client.get(f"{ROOT}{model}/").status_code == 200
    index = client.get("/admin/").content.decode()
    assert set(re.findall(r"/admin/wsgateway/(\w+)/", index)) == {model}


@pytest.mark.parametrize("model", MODELS)
def test_broker_that_is_away_is_unknown_soon(
    settings: Any, free_port: int, root: Client, model: str
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    began = time.monotonic()
    text = text_of(root, f"{model}/")
    assert time.monotonic() - began < 3  # a deadline of 1 s, and a busy machine
    assert "Cannot reach NATS" in text
    if model != "deadletterentry":
        assert "unknown" in text
    assert "There are no" not in text
    assert "Nothing needs" not in text


def test_broker_that_is_frozen_is_unknown_soon(
    settings: Any, own_server: EmbeddedServer, root: Client
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    assert "Nothing needs" not in text_of(root, "overview/")  # no gateway
    own_server.pause()
    try:
        for model in MODELS:
            began = time.monotonic()
            text = text_of(root, f"{model}/")
            assert time.monotonic() - began < 5, model  # 2 s, and a busy machine
            assert re.search("no answer|not answer", text), text
            assert "There are no" not in text
    finally:
        own_server.resume()


@pytest.mark.parametrize("model", MODELS)
def test_pages_without_a_server(settings: Any, root: Client, model: str) -> None:
    settings.PUBSUB_BROKER = "memory"
    text = text_of(root, f"{model}/")
    assert "unknown" not in text


@pytest.mark.parametrize("model", MODELS)
def test_script_gets_only_what_changes(settings: Any, root: Client, model: str) -> None:
    settings.PUBSUB_BROKER = "memory"
    response = root.get(f"{ROOT}{model}/", headers={"X-Wsgateway-Refresh": "1"})
    content = response.content.decode()
    assert "<html" not in content
    assert content.count("<div") == content.count("</div>")
    assert content.strip() in root.get(f"{ROOT}{model}/").content.decode()
    assert "X-Wsgateway-Refresh" in response.headers["Vary"]


def test_gateways_are_counted_and_one_is_drained(
    nats_settings: Any, gateway_factory: Factory, root: Client
) -> None:
    gateways = [gateway_factory(), gateway_factory()]
    with ExitStack() as stack:
        for number in range(6):
            gateway = gateways[number % 3 == 0]
            stack.callback(deaf_socket(gateway, "orders", f"u{number}", v1=True).close)
        wait_for(lambda: "2 gateways 6 " in text_of(root, "gatewayentry/"))
        names = re.findall(
            r"gatewayentry/([\w-]+)/change", root.get(f"{ROOT}gatewayentry/").content.decode()
        )
        assert len(set(names)) == 2
        by_name = {}
        for name in set(names):
            page = text_of(root, f"gatewayentry/{name}/change/")
            by_name[name] = int(re.findall(r"Sockets (\d+)", page)[0])
        assert sorted(by_name.values()) == [2, 4]
        assert "Sockets 6 Users online 6 Gateways 2" in text_of(root, "overview/")
        small = min(by_name, key=by_name.__getitem__)
        drain = f"gatewayentry/{small}/drain/"
        assert "Do you want to drain" in text_of(root, drain)
        root.post(ROOT + drain)  # not confirmed
        assert not LogEntry.objects.exists()
        page = root.post(ROOT + drain, {"confirmed": "yes"}, follow=True).content.decode()
        assert f"Gateway {small} is draining." in page
        wait_for(lambda: "draining" in text_of(root, f"gatewayentry/{small}/change/"))
        wait_for(lambda: "Sockets 0" in text_of(root, f"gatewayentry/{small}/change/"))
    (entry,) = LogEntry.objects.all()
    assert (entry.object_id, entry.change_message) == (small, "Drained.")
    assert entry.object_repr == small
    assert "Drained." in text_of(root, f"gatewayentry/{small}/history/")


def test_draining_wants_its_own_permission(
    nats_settings: Any, gateway: Gateway, client: Client, staff: Any
) -> None:
    allow(staff, "view_gatewayentry")
    wait_for(lambda: "open" in text_of(client, "gatewayentry/"))
    assert "Drain" not in text_of(client, "gatewayentry/")
    name = re.findall(
        r"gatewayentry/([\w-]+)/change", client.get(f"{ROOT}gatewayentry/").content.decode()
    )[0]
    drain = f"{ROOT}gatewayentry/{name}/drain/"
    assert client.get(drain).status_code == 403
    assert client.post(drain, {"confirmed": "yes"}).status_code == 403
    assert "draining" not in text_of(client, f"gatewayentry/{name}/change/")
    assert not LogEntry.objects.exists()
    allow(staff, "drain_gateway")
    assert client.get(drain).status_code == 200


def test_gateway_that_is_gone_is_not_drained(nats_settings: Any, root: Client) -> None:
    url = f"{ROOT}gatewayentry/nobody-1-abcd/"
    assert "is not running" in text_of(root, "gatewayentry/nobody-1-abcd/change/")
    page = root.post(f"{url}drain/", {"confirmed": "yes"}, follow=True).content.decode()
    assert "is not running, so it was not drained" in page
    assert not LogEntry.objects.exists()


def test_draining_a_gateway_that_is_frozen_is_logged_as_tried(
    nats_settings: Any, gateway: Gateway, root: Client
) -> None:
    wait_for(lambda: "open" in text_of(root, "gatewayentry/"))
    page = root.get(f"{ROOT}gatewayentry/").content.decode()
    name = re.findall(r"gatewayentry/([\w-]+)/change", page)[0]
    gateway.send(signal.SIGSTOP)
    try:
        url = f"{ROOT}gatewayentry/{name}/drain/"
        page = root.post(url, {"confirmed": "yes"}, follow=True).content.decode()
    finally:
        gateway.send(signal.SIGCONT)
    assert f"Gateway {name} drains" not in page
    assert "does not answer" in page
    (entry,) = LogEntry.objects.all()
    assert entry.change_message == "Tried to drain it; not confirmed."


@pytest.fixture
def worker(gateway: Gateway, tmp_path: Path) -> Iterator[Process]:
    """A worker of the demo's service, beside a gateway."""
    command = [sys.executable, "manage.py", "runservice", "demo", "--noreload"]
    process = Process(command, tmp_path / "worker.log", gateway.env)
    with running(process):
        process.spawn()
        process.wait_for_line("demo: ready")
        yield process


def test_services_show_what_each_worker_handles(
    nats_settings: Any, gateway: Gateway, worker: Process, root: Client
) -> None:
    """Users' names were shown to staff who may not see who is online."""
    other = get_user_model()._default_manager.create_user("other", is_staff=True)
    allow(other, "view_serviceentry")
    staff = Client()
    staff.force_login(other)
    for user in ("ann", "bob"):
        send("demo", user, "/wait 3")
    page = "serviceentry/demo/change/"

    def both_at_work() -> tuple[str, str] | None:
        found = text_of(root, page), text_of(staff, page)
        return found if all("2 of 16" in text for text in found) else None

    text, hidden = wait_for(both_at_work)
    for user in ("ann", "bob"):
        assert f"{user}, " in text
        assert user not in hidden
    assert "In progress 2" in text
    assert "2 of 16" in text
    assert "Queued 2" in text
    wait_for(lambda: "idle" in text_of(root, page))
    text = text_of(root, page)
    assert "Queued 0" in text
    assert re.search(r"idle 0 of 16 \S+/s 2 0 0 0 ", text), text
    assert "idle" in text_of(root, "serviceentry/")
    worker.send(signal.SIGSTOP)
    try:
        wait_for(lambda: "does not answer" in text_of(root, "serviceentry/"))
        assert "does not answer: frozen" in text_of(root, "overview/")
    finally:
        worker.send(signal.SIGCONT)


def test_dead_letters_of_a_service_are_sent_again_from_its_page(
    nats_settings: Any, root: Client
) -> None:
    runtime.call_sync(bury)
    page = root.get(f"{ROOT}serviceentry/orders/change/").content.decode()
    assert "ValueError: bad" in page
    (action,) = re.findall(r'<form method="post" action="([^"]+deadletter[^"]+)"', page)
    page = root.post(action, {"retry": "", "offset": "1"}, follow=True).content.decode()
    assert "1 dead letter(s) put back into the queue." in page
    assert "Queued 1" in text_of(root, "serviceentry/orders/change/")


def test_dead_letter_of_a_topic_names_topic_and_writer(nats_settings: Any, root: Client) -> None:
    async def bury(broker: Broker) -> None:
        ann, headers = Inbox("orders", "ann"), {"Ws-Topic": "room.42"}
        job = Job(ann, b"{}", headers, sequence=1, id="S.1", service="room")
        await set_aside(broker, job, ValueError("bad"))

    runtime.call_sync(bury)
    for page in ("deadletterentry/", "deadletterentry/?service=room&user=ann"):
        assert "room.42 ann (orders)" in text_of(root, page)
    text = text_of(root, "deadletterentry/1/change/")
    assert "Service room Topic room.42 User ann (orders)" in text


def test_service_page_shows_no_dead_letters_without_the_right(
    nats_settings: Any, client: Client, staff: Any
) -> None:
    runtime.call_sync(bury)
    allow(staff, "view_serviceentry")
    text = text_of(client, "serviceentry/orders/change/")
    assert "Dead letters 1" in text
    assert "ValueError" not in text


def test_who_is_online_is_for_those_who_may_see_it(
    nats_settings: Any, gateway: Gateway, client: Client, staff: Any
) -> None:
    allow(staff, "view_serviceentry", "view_overview")
    deaf = deaf_socket(gateway, "orders", "ann.k", v1=True)
    text = wait_for(
        lambda: "Sockets 1" in (text := text_of(client, "serviceentry/orders/change/")) and text
    )
    assert "ann.k" not in text
    assert "?online=yes" not in client.get(f"{ROOT}overview/").content.decode()
    allow(staff, "view_inbox", "view_user")
    assert "ann.k 1 socket" in text_of(client, "serviceentry/orders/change/")
    assert "/admin/auth/user/?online=yes" in client.get(f"{ROOT}overview/").content.decode()
    page = client.get(f"{ROOT}serviceentry/orders/change/").content.decode()
    (url,) = re.findall(r'<a href="([^"]+/inboxentry/[^"]+)">ann.k', page)
    assert "ann.k" in client.get(url, follow=True).content.decode()
    deaf.close()


def test_outbox_that_is_stuck_is_on_the_overview(settings: Any, root: Client) -> None:
    settings.PUBSUB_BROKER = "memory"
    assert "Outbox" not in text_of(root, "overview/")
    row = OutboxMessage.objects.create(service="orders", user="ann", payload=b"", kind="text")
    assert "Outbox" not in text_of(root, "overview/")
    OutboxMessage.objects.update(created_at=row.created_at - timedelta(minutes=5))
    text = text_of(root, "overview/")
    assert "Outbox: the oldest row has waited for 5 min; is a relay running?" in text
    OutboxMessage.objects.update(failed_at=row.created_at)
    assert "Outbox: 1 row could not be sent" in text_of(root, "overview/")


def test_alerts_lead_only_where_the_user_may_go(
    nats_settings: Any, client: Client, staff: Any
) -> None:
    runtime.call_sync(bury)
    allow(staff, "view_overview")
    page = client.get(f"{ROOT}overview/").content.decode()
    assert "orders: 1 dead letter" in page
    assert "deadletterentry" not in page
    assert "gatewayentry" not in page
    allow(staff, "view_deadletterentry", "view_gatewayentry")
    page = client.get(f"{ROOT}overview/").content.decode()
    assert "/admin/wsgateway/deadletterentry/?service=orders" in page


def test_queue_that_nobody_empties_is_stuck(
    nats_settings: Any, root: Client, monkeypatch: Any
) -> None:
    monkeypatch.setattr("wsgateway.alerts.UNTAKEN", 0.0)
    for number in range(3):
        send("orders", "ann", str(number))
    text = text_of(root, "overview/")
    assert "orders: 3 messages wait and no worker takes any" in text
    text = text_of(root, "serviceentry/orders/change/")
    assert "Queued 3" in text
    assert "No worker runs this service." in text


def test_streams_say_what_differs_from_the_settings(
    nats_settings: Any, root: Client, prefix: str
) -> None:
    upper = prefix.upper()
    wait_for(lambda: f"{upper}_RECV" in text_of(root, "streamentry/"))
    assert "differs" not in text_of(root, "streamentry/")

    async def change(broker: Any) -> None:
        name = f"{upper}_RECV"
        config = (await broker.jetstream.api(f"STREAM.INFO.{name}"))["config"]
        await broker.jetstream.api(f"STREAM.UPDATE.{name}", {**config, "max_age": 3600 * 10**9})

    runtime.call_sync(change)
    runtime.reset()
    wait_for(lambda: "differs from the settings" in text_of(root, "streamentry/"))
    assert "3600 s" in text_of(root, f"streamentry/{upper}_RECV/change/")
