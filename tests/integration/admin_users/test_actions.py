"""What staff do with users: send, delete, disconnect, log out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.messages import get_messages
from django.contrib.sessions.models import Session
from django.test import Client
from websockets.sync.client import ClientConnection

from tests.integration.admin_users.helpers import (
    Open,
    create,
    identity_with_token,
    kept,
    log_of,
    message,
    page_at,
    page_of,
)
from tests.support import wait_for
from wsgateway import presence, send
from wsgateway.broker import runtime
from wsgateway.exceptions import IdentityRefused
from wsgateway.identity.voiding import require_valid_token
from wsgateway.models import InboxEntry

pytestmark = pytest.mark.django_db


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
