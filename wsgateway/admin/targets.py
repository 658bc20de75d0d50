"""Whose pages they are: a Django user, or another identity; and what a request names of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import BadRequest
from django.db.models import Model
from django.http import HttpRequest

from wsgateway.protocol.subjects import Inbox

__all__ = ["DELETE", "DISCONNECT", "SEND", "VIEW", "Target", "number_of", "offset_of"]

VIEW = "wsgateway.view_inbox"
SEND = "wsgateway.send_message"
DELETE = "wsgateway.delete_message"
DISCONNECT = "wsgateway.disconnect_socket"
"""Permissions; see `wsgateway.models.InboxEntry`."""

MAX_DIGITS = 20
"""Digits of an offset, an unsigned number of 64 bits."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whose page it is.

    Attributes:
        entry: What the admin's log is about.
        title: The page's.
        parents: Text and URL of the pages above it.
        name: The name of the inboxes; None: there cannot be any.
        services: Whose inboxes; None: those of all services.
        account: The Django user whose sessions can be ended; None: it is not one.
        account_url: Of the page of the Django user with this name; empty: not known.
    """

    entry: Model
    title: str
    name: str | None
    parents: Sequence[tuple[str, str]] = ()
    services: Sequence[str] | None = None
    account: Any = None
    account_url: str = ""

    def inbox_of(self, request: HttpRequest) -> Inbox:
        """Return the inbox that the query names; without a name, the only one.

        Raises:
            BadRequest: There is none on these pages.
        """
        named = request.GET.get("service", "")
        return self.inbox(named or (self.services or ("",))[0])

    def inbox(self, service: str) -> Inbox:
        """Return the user's inbox in *service*.

        Raises:
            BadRequest: There is none on these pages.
        """
        if not service or self.name is None:
            raise BadRequest("no service is named")
        if self.services is not None and service not in self.services:
            raise BadRequest("this is the page of another service")
        return Inbox(service, self.name)


def number_of(request: HttpRequest, name: str) -> int | None:
    """Return a number of the query; None if it is missing, or is not an offset."""
    text = request.GET.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < MAX_DIGITS else None


def offset_of(request: HttpRequest) -> int:
    """Return the offset that the query names.

    Raises:
        BadRequest: It names none.
    """
    offset = number_of(request, "offset")
    if not offset:
        raise BadRequest("no offset is named")
    return offset
