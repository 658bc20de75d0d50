"""Who may see and do what on the admin's pages of users."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.test import Client

from tests.integration.admin_users.helpers import (
    ALL,
    create,
    kept,
    message,
    page_at,
    page_of,
    staff,
)
from tests.support import ROOT, site_env
from wsgateway import send

pytestmark = pytest.mark.django_db

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
