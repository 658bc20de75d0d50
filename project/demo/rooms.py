"""The rooms at ``/demo/room/``: topics that several users read, one of them only with a token."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

from django.contrib.auth.decorators import login_not_required, login_required
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST, require_safe

from project.demo.panels import SERVICE, guest_of, may_publish, panels_of
from wsgateway import topics
from wsgateway.exceptions import WsGatewayError

__all__ = ["ROOMS", "TOPICS", "history", "let_in", "page", "show_out", "token"]

TOPICS = "demo-room"
"""The service of the rooms; see `project.demo.ws_services`."""
HISTORY = 50
"""Messages of a page of what was said."""
LET_IN = "demo-room-guest"
"""Key of the session: whether the second user of the page may enter the private room."""


class Room(NamedTuple):
    """A room of the demo.

    Attributes:
        title: What the page calls it.
        is_private: Whether one needs a token.
    """

    title: str
    is_private: bool


ROOMS = {"lobby": Room("Lobby", False), "private": Room("Private room", True)}

View = Callable[[HttpRequest, str], HttpResponse]


@login_required
@require_safe
@ensure_csrf_cookie
def page(request: HttpRequest, name: str) -> HttpResponse:
    """Show a room: two users of it in development, otherwise the visitor."""
    context = {
        "service": TOPICS,
        "name": name,
        "room": ROOMS[name],
        "rooms": ROOMS,
        "panels": panels_of(request),
        "is_host": may_enter(request, name),
        "is_let_in": is_let_in(request),
    }
    return render(request, "demo/room.html", context)


def may_enter(request: HttpRequest, name: str) -> bool:
    """Say whether the page gives the visitor what opens a room: to everybody in development."""
    if ROOMS[name].is_private:
        return may_publish(request.user)
    return bool(request.user.is_authenticated)


def is_let_in(request: HttpRequest) -> bool:
    """Say whether the visitor has let the second user of the page into the private room."""
    return bool(request.session.get(LET_IN))


def for_those_inside(view: View) -> View:
    """Answer JSON to the page's script: 404 for an unknown room, 403 to who may not enter it."""

    @login_not_required  # the page's script wants JSON, even when the session is over
    @never_cache
    @wraps(view)
    def checked(request: HttpRequest, name: str) -> HttpResponse:
        if name not in ROOMS:
            raise Http404
        if not may_enter(request, name):
            return JsonResponse({"error": "you may not enter this room"}, status=403)
        try:
            return view(request, name)
        except WsGatewayError as exc:
            return JsonResponse({"error": str(exc)}, status=503)

    return checked


@require_safe
@for_those_inside
def history(request: HttpRequest, name: str) -> HttpResponse:
    """Return a page of what was said before an offset, or the newest; oldest first."""
    try:
        before = int(request.GET["before"]) if "before" in request.GET else None
        found = topics.history(TOPICS, name, before=before, limit=HISTORY)
    except ValueError:
        return JsonResponse({"error": "before which offset?"}, status=400)
    said = [
        {
            "offset": message.offset,
            "time": message.time,
            "from": message.sender and message.sender.user,
            "text": message.data if isinstance(message.data, str) else None,
        }
        for message in found.messages
    ]
    return JsonResponse({"messages": said, "before": found.first if found.more else None})


@require_POST
@for_those_inside
def token(request: HttpRequest, name: str) -> HttpResponse:
    """Return a token that opens the room to the visitor, or to a guest whom they let in."""
    user = request.POST.get("user", "")
    if user != request.user.get_username() and (
        user != guest_of(request) or not is_let_in(request)
    ):
        return JsonResponse({"error": "nobody has let this user in"}, status=403)
    opens = topics.token(TOPICS, name, user=(SERVICE, user), access="write")
    return JsonResponse({"token": opens})


@require_POST
@for_those_inside
def let_in(request: HttpRequest, name: str) -> HttpResponse:
    """Let the second user of the page have tokens from now on; remembered in the session."""
    request.session[LET_IN] = True
    return JsonResponse({})


@require_POST
@for_those_inside
def show_out(request: HttpRequest, name: str) -> HttpResponse:
    """Show the second user of the page out: their tokens are void, and their sockets leave."""
    request.session[LET_IN] = False
    request.session.save()  # before the sockets leave, because their pages ask for another token
    guest = guest_of(request)
    if guest is not None:
        topics.revoke(TOPICS, name, user=(SERVICE, guest))
    return JsonResponse({})
