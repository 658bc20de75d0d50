"""The start page, and the demonstration: users' inboxes in the browser, and a form to publish.

The history of an inbox comes from `wsgateway.broker`, which other projects do not need: their
clients resume by themselves.
"""

from __future__ import annotations

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required, login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST, require_safe

from project.demo import documents, hints
from project.demo.panels import SERVICE, Panel, guest_of, may_publish, panels_of
from project.demo.ws_services import CRASH_ATTEMPTS
from wsgateway import send
from wsgateway.broker import runtime
from wsgateway.broker.messages import Stored
from wsgateway.exceptions import WsGatewayError
from wsgateway.identity import make_token
from wsgateway.protocol.subjects import MAX_NAME_BYTES, Inbox

__all__ = ["favicon", "history", "page", "publish", "start", "token"]

HISTORY = 50
"""Messages that the page shows from before it was opened."""
TOKEN_MAX_AGE = 3600.0
"""Seconds; the socket ends with it, and the page then connects again with another one."""


class PublishForm(forms.Form):
    """A message to one user of the service ``demo``; the same *id* is stored once."""

    user = forms.CharField(max_length=MAX_NAME_BYTES)
    text = forms.CharField(max_length=20_000)
    id = forms.SlugField(max_length=64, required=False)


@login_not_required
@require_safe
def start(request: HttpRequest) -> HttpResponse:
    """Say what this is, and where to go on."""
    context = {"debug": settings.DEBUG, "documents": documents.are_built()}
    return render(request, "demo/start.html", context)


@login_not_required
@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """Lead to the icon for pages that do not name one, such as a browser's view of JSON."""
    return redirect(static("demo/favicon.svg"))


@login_required
@require_safe
@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    """Show the inbox of the logged-in user, beside a second one in development."""
    panels = panels_of(request)
    context = {
        "panels": panels,
        "form": may_publish(request.user),
        "example": _example(panels[0]),
        "attempts": CRASH_ATTEMPTS,
        "dead_letters": _dead_letters(request),
    }
    return render(request, "demo/page.html", context)


def _dead_letters(request: HttpRequest) -> str:
    """Return where the admin shows what the service failed to handle; "" if that is of no use."""
    if not (settings.DEBUG or getattr(request.user, "is_staff", False)):
        return ""
    return reverse("admin:wsgateway_deadletterentry_changelist")


def _example(panel: Panel) -> str:
    """Return a command that sends to the user of *panel*; "" where that shows too much."""
    if not settings.DEBUG:
        return ""
    try:
        url = hints.broker_url()
    except WsGatewayError:  # the page says that it is not connected
        return ""
    return hints.nats_publish(url, Inbox(SERVICE, panel.user), "hello") if url else ""


@login_not_required  # the page's script wants JSON, even when the session is over
@never_cache
@require_safe
def history(request: HttpRequest) -> HttpResponse:
    """Return the newest messages of one of the page's inboxes, oldest first."""
    user = request.GET.get("user", "")
    if user not in {panel.user for panel in panels_of(request)}:
        return JsonResponse({"error": "log in to see your messages"}, status=403)
    try:
        before = int(request.GET["before"])
    except (KeyError, ValueError):
        return JsonResponse({"error": "before which offset?"}, status=400)
    inbox = Inbox(SERVICE, user)
    try:
        batch = runtime.call_sync(
            lambda broker: broker.inboxes.read_last(inbox, HISTORY, before=max(before, 1))
        )
    except WsGatewayError as exc:
        return JsonResponse({"error": str(exc)}, status=503)
    return JsonResponse({"messages": [_shown(message) for message in batch.messages]})


def _shown(message: Stored) -> dict[str, object]:
    """Return what the page shows of a message."""
    try:
        text = message.payload.decode()
    except UnicodeDecodeError:
        text = f"{len(message.payload)} bytes"
    return {
        "offset": message.offset,
        "time": message.time,
        "text": text,
        "from": "service" if message.reply_to else None,
        "error": message.error,
    }


@login_not_required  # the page's script wants JSON, even when the session is over
@never_cache
@require_POST
def token(request: HttpRequest) -> HttpResponse:
    """Return a token for the second user of the page; nobody gets one in production."""
    guest = guest_of(request)
    if guest is None:
        return JsonResponse({"error": "only demo users have a second user"}, status=403)
    return JsonResponse({"token": make_token(SERVICE, guest, max_age=TOKEN_MAX_AGE)})


@login_not_required
@require_POST
def publish(request: HttpRequest) -> HttpResponse:
    """Publish the form's message; answer JSON to scripts, a redirect to the page otherwise."""
    if not may_publish(request.user):
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
