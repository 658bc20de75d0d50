"""Users, staff and pages of the admin."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from websockets.sync.client import ClientConnection

from wsgateway.broker import runtime
from wsgateway.identity import Identity, TokenIdentity, make_token
from wsgateway.models import InboxEntry
from wsgateway.protocol.subjects import Inbox

LIST = "/admin/auth/user/"
STRANGE = "a/b ?c#d%2F.é@x+y_z"
ALL = ("view_user", "view_inbox", "send_message", "delete_message", "disconnect_socket")


Open = Callable[..., ClientConnection]


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


def message(content: str, **fields: str) -> dict[str, str]:
    return {
        "service": "orders",
        "kind": "text",
        "content": content,
        "ttl": "",
        "msg_id": f"admin.{zlib.crc32(content.encode())}",
        **fields,
    }
