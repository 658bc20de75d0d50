"""The admin's pages of users while the broker or a gateway is away."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from tests.integration.admin_users.helpers import (
    LIST,
    Open,
    create,
    log_of,
    message,
    page_at,
    page_of,
    read,
    standing,
)
from tests.support import Gateway, wait_for
from wsgateway import presence, send
from wsgateway.broker import runtime

pytestmark = pytest.mark.django_db


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
