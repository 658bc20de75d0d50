"""The demo's rooms, with the memory broker."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from project.demo import rooms
from project.demo.users import create_demo_users
from project.demo.ws_services import room
from wsgateway import send_topic
from wsgateway.broker import runtime
from wsgateway.identity import Identity
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.topics.tokens import read_token

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _fresh_brokers() -> Any:
    runtime.reset()
    yield
    runtime.reset()


def log_in(name: str, **fields: Any) -> Any:
    return get_user_model().objects.create_user(name, password=name, **fields)


def test_start_page_leads_to_the_rooms(client: Client) -> None:
    assert 'href="/demo/room/"' in client.get("/").content.decode()
    assert client.get("/demo/room/private/").headers["location"].startswith("/login/")


def test_room_shows_page_by_page_what_was_said(client: Client) -> None:
    client.force_login(log_in("cleo"))
    for number in range(rooms.HISTORY + 1):
        send_topic(rooms.TOPICS, "lobby", text=str(number))
    found = client.get("/demo/room/lobby/history/").json()
    assert [m["text"] for m in found["messages"]] == [str(n) for n in range(1, 51)]
    earlier = {"before": found["before"]}
    found = client.get("/demo/room/lobby/history/", earlier).json()
    assert ([m["text"] for m in found["messages"]], found["before"]) == (["0"], None)
    assert client.get("/demo/room/lobby/history/", {"before": "x"}).status_code == 400
    assert client.get("/demo/room/attic/history/").status_code == 404


@pytest.mark.parametrize("is_staff", [False, True])
def test_private_room_opens_to_staff_in_production(client: Client, is_staff: bool) -> None:
    client.force_login(log_in("cleo", is_staff=is_staff))
    page = client.get("/demo/room/private/").content.decode()
    assert ('data-opens="' in page) is is_staff
    answers = {
        client.post("/demo/room/private/token/", {"user": "cleo"}).status_code,
        client.get("/demo/room/private/history/").status_code,
    }
    assert answers == {200 if is_staff else 403}
    assert client.post("/demo/room/private/token/", {"user": "bob"}).status_code == 403


def test_guest_gets_tokens_only_while_let_in(client: Client, settings: Any) -> None:
    """A client that is shown out asks for another token at once."""
    settings.DEBUG = True
    create_demo_users()
    client.login(username="ann", password="ann")
    wanted = ("/demo/room/private/token/", {"user": "bob"})
    assert client.post(*wanted).status_code == 403
    assert client.get("/demo/room/private/").content.decode().count("data-opens") == 1
    client.post("/demo/room/private/let-in/")
    token = client.post(*wanted).json()["token"]
    assert client.get("/demo/room/private/").content.decode().count("data-opens") == 2
    grant = read_token(token, Topic(rooms.TOPICS, "private"), Inbox("demo", "bob"))
    assert grant is not None
    assert grant.access == "write"
    assert client.post("/demo/room/private/show-out/").status_code == 200
    assert client.post(*wanted).status_code == 403


def test_only_the_lobby_is_open_to_who_has_no_token() -> None:
    assert room(Identity("demo", "ann"), "lobby") == "write"
    assert room(Identity("demo", "ann"), "private") is None
    assert room(Identity("service1", "ann"), "lobby") is None
