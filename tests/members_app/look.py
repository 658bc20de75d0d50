"""What a superuser sees."""

from __future__ import annotations

import json
import re
from typing import Any

from django.contrib.admin.models import LogEntry
from django.core.management import call_command
from django.test import Client

from tests.members_app.models import Member
from wsgateway import send
from wsgateway.broker import runtime
from wsgateway.protocol.subjects import Inbox


def main() -> None:
    """Print a line of JSON."""
    call_command("migrate", run_syncdb=True, verbosity=0)
    call_command("check", fail_level="ERROR")
    root = Member(email="root@example.com", is_staff=True, is_superuser=True)
    ann = Member(email="ann@example.com")
    for member in (root, ann):
        member.save()
    send("orders", ann.email, text="hello")
    browser = Client()
    user: Any = root  # the stubs take Django's own class only
    browser.force_login(user)

    def get(url: str) -> str:
        answer = browser.get(url)
        assert answer.status_code == 200, url
        return answer.content.decode()

    people = "/ops/members_app/member/"
    rows = re.findall(r"<tr>(.*?)</tr>", get(people), re.S)
    row = next(each for each in rows if ann.email in each)
    page = page_in(row)
    fields = {"service": "orders", "kind": "text", "content": "again", "msg_id": "1"}
    browser.post(f"{page}send/", fields)
    inboxes = get("/ops/wsgateway/inboxentry/")
    report = {
        "row": text_of(row),
        "online": "0 users" in get(f"{people}?online=yes"),
        "form": page in get(f"{people}{ann.pk}/change/"),
        "title": "Websockets of ann@example.com" in get(page),
        "inbox": ann.email in text_of(inboxes),
        "identity": page in get(page_in(inboxes)),
        "sent": [each.payload.decode() for each in runtime.call_sync(stored)],
        "log": [str(each) for each in LogEntry.objects.all()],
    }
    print(json.dumps(report))


async def stored(broker: Any) -> Any:
    return (
        await broker.inboxes.read_after(Inbox("orders", "ann@example.com"), 0, limit=10)
    ).messages


def page_in(html: str) -> str:
    found = re.search(r'href="([^"]*/websockets/)"', html)
    assert found is not None
    return found[1]


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())
