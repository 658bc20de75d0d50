"""The demonstration: users' inboxes in the browser, and a form to publish."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import get_script_prefix, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST, require_safe

from project.demo.users import DEMO_USERS
from wsgateway import send
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import WsGatewayError
from wsgateway.identity import make_token
from wsgateway.protocol.subjects import MAX_NAME_BYTES, Inbox, Subjects

__all__ = ["page", "publish", "token"]

SERVICE = "demo"
TOKEN_MAX_AGE = 3600.0
"""Seconds; the socket ends with it, and the page then connects again with another one."""


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


class PublishForm(forms.Form):
    """A message to one user of the service ``demo``; the same *id* is stored once."""

    user = forms.CharField(max_length=MAX_NAME_BYTES)
    text = forms.CharField(max_length=20_000)
    id = forms.SlugField(max_length=64, required=False)


def _may_publish(user: object) -> bool:
    """Say whether *user* may write to anybody: staff; in development everybody."""
    if not getattr(user, "is_authenticated", False):
        return False
    return settings.DEBUG or bool(getattr(user, "is_staff", False))


def _guest(request: HttpRequest) -> str | None:
    """Return the demo user who shares the page with the logged-in one.

    None in production: there, nobody acts for somebody else. The demo users' passwords are their
    names, and only DEBUG creates them.
    """
    name = request.user.get_username()
    if not settings.DEBUG or name not in DEMO_USERS:
        return None
    ordinary = (user for user, superuser in DEMO_USERS.items() if not superuser)
    return next((user for user in ordinary if user != name), None)


def _panels(request: HttpRequest) -> list[Panel]:
    name = request.user.get_username()
    if not name:
        return []
    guest = _guest(request)
    if guest is None:
        return [Panel(name)]
    return [Panel(name, guest), Panel(guest, name, reverse("demo:token"))]


@require_safe
@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    """Show the inbox of the logged-in user, beside a second one in development."""
    panels = _panels(request)
    context = {
        "panels": panels,
        "form": _may_publish(request.user),
        "debug": settings.DEBUG,
    }
    if panels:
        inbox = Inbox(SERVICE, panels[0].user)
        context["example"] = Subjects(wsgateway_settings.PREFIX).recv(inbox)
    return render(request, "demo/page.html", context)


@login_not_required  # the page's script wants JSON, also when the session is over
@never_cache
@require_POST
def token(request: HttpRequest) -> HttpResponse:
    """Return a token for the second user of the page; nobody gets one in production."""
    guest = _guest(request)
    if guest is None:
        return JsonResponse({"error": "only demo users have a second user"}, status=403)
    return JsonResponse({"token": make_token(SERVICE, guest, max_age=TOKEN_MAX_AGE)})


@login_not_required
@require_POST
def publish(request: HttpRequest) -> HttpResponse:
    """Publish the form's message; answer JSON to scripts, a redirect to the page otherwise."""
    if not _may_publish(request.user):
        return JsonResponse({"error": "only staff may publish; log in"}, status=403)
    form = PublishForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"error": "give a user and a message"}, status=400)
    user, text, id = (form.cleaned_data[name] for name in ("user", "text", "id"))
    try:
        receipt = send(SERVICE, user, text=text, msg_id=f"{SERVICE}-page-{id}" if id else None)
    except WsGatewayError as exc:
        return JsonResponse({"error": str(exc)}, status=503)
    if "application/json" in request.headers.get("accept", ""):
        return JsonResponse({"user": user, "offset": receipt.offset})
    messages.success(request, f"Stored for {user} at offset {receipt.offset}.")
    return redirect("demo:page")
