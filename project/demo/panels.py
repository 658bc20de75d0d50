"""Who appears on the demo's pages: the visitor and, in development, a second user beside them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from django.conf import settings
from django.http import HttpRequest
from django.urls import get_script_prefix, reverse

from project.demo.users import DEMO_USERS

__all__ = ["SERVICE", "Panel", "guest_of", "may_publish", "panels_of"]

SERVICE = "demo"


@dataclass(frozen=True)
class Panel:
    """One user's half of the page.

    Attributes:
        user: Whose inbox.
        other: Whom the form writes to; None lets the visitor choose.
        token: Where the page gets a token for *user*; None if the session says who it is.
    """

    user: str
    other: str | None = None
    token: str | None = None

    @property
    def path(self) -> str:
        """Where the websocket connects."""
        return f"{get_script_prefix()}ws/{SERVICE}/{quote(self.user, safe='')}/"


def may_publish(user: object) -> bool:
    """Say whether *user* may write to anybody: staff; in development everybody."""
    if not getattr(user, "is_authenticated", False):
        return False
    return settings.DEBUG or bool(getattr(user, "is_staff", False))


def guest_of(request: HttpRequest) -> str | None:
    """Return the demo user who shares the page with the logged-in one.

    None in production: there, nobody acts for somebody else. The demo users' passwords are their
    names, and only DEBUG creates them.
    """
    name = request.user.get_username()
    if not settings.DEBUG or name not in DEMO_USERS:
        return None
    ordinary = (user for user, superuser in DEMO_USERS.items() if not superuser)
    return next((user for user in ordinary if user != name), None)


def panels_of(request: HttpRequest) -> list[Panel]:
    """Return what the visitor sees; nothing if nobody is logged in."""
    name = request.user.get_username()
    if not name:
        return []
    guest = guest_of(request)
    if guest is None:
        return [Panel(name)]
    return [Panel(name, guest), Panel(guest, name, reverse("demo:token"))]
