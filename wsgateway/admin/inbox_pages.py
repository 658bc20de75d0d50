"""The pages of a user, or of another identity: connections, devices, inbox, and what to do there.

A `ModelAdmin` gets them below the URLs of its objects; see `InboxPages`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth import logout
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_http_methods

from wsgateway import presence
from wsgateway.admin.base import (
    REFRESH,
    REFRESH_HEADER,
    carry_out,
    confirm,
    is_confirmed,
    log,
    may_see,
    render,
)
from wsgateway.admin.forms import SendForm, TimesForm
from wsgateway.admin.panels import Panels, Place, find_message, read_panels
from wsgateway.admin.payloads import WHOLE
from wsgateway.admin.standing import Standing, services_of
from wsgateway.admin.targets import DELETE, DISCONNECT, SEND, VIEW, Target, number_of, offset_of
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Action
from wsgateway.broker.messages import Receipt
from wsgateway.exceptions import WsGatewayError, reason_of
from wsgateway.logging_out import log_out_everywhere
from wsgateway.logins import can_end_sessions
from wsgateway.models import GatewayEntry

if TYPE_CHECKING:
    from wsgateway.presence import Disconnected

    AnyAdmin = admin.ModelAdmin[Any]
else:
    AnyAdmin = admin.ModelAdmin

__all__ = ["InboxPages"]

ACTIONS = ("message", "send", "delete", "purge", "disconnect", "log_out")
T = TypeVar("T")


Find = Callable[[HttpRequest, str], Target]
Handler = Callable[[HttpRequest, Target], HttpResponse]


class InboxPages:
    """The pages below ``<object id>/websockets/`` of a `ModelAdmin`.

    Args:
        owner: Whose URLs they are below, whose site's look they have.
        find: Returns whose pages those of an object id are, or raises `Http404` or
            `PermissionDenied`.
    """

    def __init__(self, owner: AnyAdmin, find: Find) -> None:
        self._owner = owner
        self._find = find
        self._prefix = f"{owner.opts.app_label}_{owner.opts.model_name}_websockets"

    def urls(self) -> list[URLPattern]:
        """Return the URLs, which go before the admin's own."""
        base = "<path:object_id>/websockets/"
        found = [path(base, self._view(self._page, "GET"), name=self._prefix)]
        views = {
            "message": self._view(self._message, "GET"),
            "send": self._view(self._send, "POST", permission=SEND),
            "delete": self._view(self._delete, "GET", "POST", permission=DELETE),
            "purge": self._view(self._purge, "GET", "POST", permission=DELETE),
            "disconnect": self._view(self._disconnect, "GET", "POST", permission=DISCONNECT),
            "log_out": self._view(self._log_out, "GET", "POST", permission=DISCONNECT),
        }
        return found + [
            path(f"{base}{name}/", view, name=f"{self._prefix}_{name}")
            for name, view in views.items()
        ]

    def url(self, entry: Model, action: str = "", **query: Any) -> str:
        """Return the URL of the page of *entry*, or of something to do there."""
        name = f"{self._prefix}_{action}" if action else self._prefix
        site = self._owner.admin_site.name
        url = reverse(f"admin:{name}", args=[quote(entry.pk)], current_app=site)
        query = {key: value for key, value in query.items() if value not in (None, "")}
        return f"{url}?{urlencode(query)}" if query else url

    def _view(
        self, handler: Handler, *methods: str, permission: str = VIEW
    ) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, object_id: str) -> HttpResponse:
            if not request.user.has_perms([VIEW, permission]):
                raise PermissionDenied
            return handler(request, self._find(request, unquote(object_id)))

        allowed = require_http_methods([*methods, "HEAD"] if "GET" in methods else [*methods])
        return self._owner.admin_site.admin_view(allowed(view))

    # -- looking ---------------------------------------------------------------------------

    def _page(
        self, request: HttpRequest, target: Target, form: SendForm | None = None
    ) -> HttpResponse:
        times = TimesForm(request.GET if {"since", "until"} & request.GET.keys() else None)
        panels = self._panels(request, target, times)
        form = form or SendForm()
        form.offer(panels.services, panels.inbox.service if panels.inbox else None)
        context = {
            "panels": panels,
            "times": times,
            "form": form,
            "may_log_out": self._may_log_out(request, target),
            "links": self._links(target, panels, times),
        }
        refresh = REFRESH if request.method == "GET" else None
        return self._render(
            request, target, "page", target.title, context, panels.problems, refresh=refresh
        )

    def _panels(self, request: HttpRequest, target: Target, times: TimesForm) -> Panels:
        if target.name is None:
            return Panels((), None, Standing(False, 0, 0), (), frozenset(), {}, (), None, ())
        place = Place(
            before=number_of(request, "before"),
            after=number_of(request, "after"),
            **(times.cleaned_data if times.is_bound and times.is_valid() else {}),
        )
        wanted = None if REFRESH_HEADER in request.headers else place
        return read_panels(target.name, target.services, request.GET.get("service"), wanted)

    def _links(self, target: Target, panels: Panels, times: TimesForm) -> Mapping[str, str]:
        """Return the URLs of the pages of messages around those that are shown."""
        query: dict[str, Any] = {"service": panels.inbox.service if panels.inbox else None}
        found = {"all": self.url(target.entry, **query)}
        if times.is_bound:
            query |= {name: times[name].value() for name in times.fields}
        found["newest"] = self.url(target.entry, **query)
        leaf = panels.leaf
        if leaf and leaf.older:
            found["older"] = self.url(target.entry, **query, before=leaf.older)
        if leaf and leaf.newer:
            found["newer"] = self.url(target.entry, **query, after=leaf.newer)
        return found

    def _message(self, request: HttpRequest, target: Target) -> HttpResponse:
        inbox, offset = target.inbox_of(request), offset_of(request)
        found, problems = find_message(inbox, offset, WHOLE)
        if found is None and not problems:
            messages.warning(request, f"Message {offset} is not kept any more.")
            return self._back(target, inbox.service)
        context = {"shown": found, "inbox": inbox}
        return self._render(request, target, "message", f"Message {offset}", context, problems)

    # -- doing -----------------------------------------------------------------------------

    def _send(self, request: HttpRequest, target: Target) -> HttpResponse:
        form = SendForm(request.POST)
        if target.name is None or not form.is_valid():
            return self._page(request, target, form)
        data = form.cleaned_data
        inbox = target.inbox(data["service"])
        payload, ttl = data["content"].encode(), data["ttl"]

        async def send(broker: Broker) -> Receipt:
            return await broker.publish(inbox, payload, kind="text", msg_id=data["msg_id"], ttl=ttl)

        what = f"send {len(payload)} bytes to {inbox.service}"
        receipt = self._act(request, target, what, send)
        if receipt is None:  # what was written is not lost
            return self._page(request, target, form)
        if not receipt.duplicate:
            text = f"Sent message {receipt.offset} to {inbox.service}, {len(payload)} bytes."
            self._done(request, target, text)
        return self._back(target, inbox.service)

    def _delete(self, request: HttpRequest, target: Target) -> HttpResponse:
        inbox, offset = target.inbox_of(request), offset_of(request)
        if not is_confirmed(request):
            question = (
                f"This deletes message {offset} of {inbox.service}. Devices that have not received "
                "it yet will not receive it. It cannot be restored."
            )
            return self._confirm(request, target, "Delete the message?", question, inbox.service)
        what = f"delete message {offset} of {inbox.service}"
        deleted = self._act(
            request, target, what, lambda broker: broker.operations.delete(inbox, offset)
        )
        if deleted:
            self._done(request, target, f"Deleted message {offset} of {inbox.service}.")
        elif deleted is not None:
            messages.warning(request, f"Message {offset} is not kept any more.")
        return self._back(target, inbox.service)

    def _purge(self, request: HttpRequest, target: Target) -> HttpResponse:
        inbox = target.inbox_of(request)
        if not is_confirmed(request):
            question = (
                f"This deletes all messages in the inbox of {inbox.service}, whether they were "
                "received or not. They cannot be restored."
            )
            return self._confirm(request, target, "Purge the inbox?", question, inbox.service)
        count = self._act(
            request,
            target,
            f"purge the inbox of {inbox.service}",
            lambda broker: broker.operations.purge(inbox),
        )
        if count is not None:
            text = f"Purged the inbox of {inbox.service}: {count} message(s)."
            self._done(request, target, text)
        return self._back(target, inbox.service)

    def _disconnect(self, request: HttpRequest, target: Target) -> HttpResponse:
        """Close one socket, or all once that is confirmed."""
        connection = request.POST.get("connection", "")
        if connection:
            inbox = target.inbox_of(request)
            what = f"disconnect {connection[:80]} from {inbox.service}"
            self._close(request, target, what, (inbox.service,), connection)
            return self._back(target, request.POST.get("back"))
        if not is_confirmed(request):
            question = (
                "This closes all open sockets, in every service. Clients do not reconnect by "
                "themselves, but may connect again: reloading the page is enough."
            )
            return self._confirm(request, target, "Disconnect all?", question)
        self._close(request, target, "disconnect all sockets", target.services)
        return self._back(target)

    def _log_out(self, request: HttpRequest, target: Target) -> HttpResponse:
        if not self._may_log_out(request, target):
            raise PermissionDenied
        if not is_confirmed(request):
            question = (
                "This ends all of the user's sessions, in every browser, refuses the tokens that "
                "they have got so far, and closes all open sockets. A token that was made for a "
                "name instead of a user stays valid until it expires, and so does a signed cookie."
            )
            if target.account == request.user:
                question += " This is you: you will have to log in again."
            return self._confirm(request, target, "Log out everywhere?", question)
        try:
            log_out_everywhere(target.account)
        except WsGatewayError as exc:
            log(request, [target.entry], "Ended all sessions; tokens may still be valid.")
            text = f"All sessions have ended, but tokens may still be valid: {reason_of(exc)}."
            messages.error(request, f"{text} Log out everywhere again.")
        else:
            self._done(request, target, "Logged out everywhere.")
        self._close(request, target, "disconnect all sockets", target.services)
        if target.account == request.user:
            logout(request)  # or the answer would try to save a session that is gone
        return self._back(target)

    def _close(
        self,
        request: HttpRequest,
        target: Target,
        what: str,
        services: Sequence[str] | None,
        connection: str | None = None,
    ) -> None:
        """Close sockets, and say how many.

        Args:
            request: Who wants it.
            target: Whose.
            what: For the admin's log, an infinitive.
            services: Of these services; None: of all.
            connection: Only the one with this id.
        """
        name = target.name
        if name is None:
            return

        async def close(broker: Broker) -> list[Disconnected]:
            known = await services_of(broker) if services is None else services
            return await asyncio.gather(
                *(presence.adisconnect(service, name, connection=connection) for service in known)
            )

        results = self._act(request, target, what, close)
        if results is None:
            return
        sockets = sum(each.sockets for each in results)
        self._done(request, target, f"{what[0].upper()}{what[1:]}: {sockets} closed.")
        for gateway in sorted({each for result in results for each in result.silent}):
            text = f"Gateway {gateway} does not answer; its sockets may still be open."
            messages.warning(request, text)

    def _act(self, request: HttpRequest, target: Target, what: str, action: Action[T]) -> T | None:
        """Do it. None: it failed; that is recorded too, because it may have taken effect."""
        result = carry_out(request, action)
        if result is None:
            log(request, [target.entry], f"Tried to {what}; not confirmed by the broker.")
        return result

    def _done(self, request: HttpRequest, target: Target, text: str) -> None:
        log(request, [target.entry], text)
        messages.success(request, text)

    # -- helpers ---------------------------------------------------------------------------

    def _may_log_out(self, request: HttpRequest, target: Target) -> bool:
        return (
            target.account is not None
            and can_end_sessions()
            and request.user.has_perm(DISCONNECT)
            and self._owner.has_change_permission(request, target.account)
        )

    def _back(self, target: Target, service: str | None = None) -> HttpResponse:
        return HttpResponseRedirect(self.url(target.entry, service=service))

    def _confirm(
        self,
        request: HttpRequest,
        target: Target,
        title: str,
        question: str,
        service: str | None = None,
    ) -> HttpResponse:
        url = self.url(target.entry, service=service)
        parents = [*target.parents, (target.title, url)]
        return confirm(self._owner, request, title, question, parents=parents, back=url)

    def _render(
        self,
        request: HttpRequest,
        target: Target,
        template: str,
        title: str,
        context: Mapping[str, Any],
        problems: Sequence[str],
        *,
        refresh: int | None = None,
    ) -> HttpResponse:
        page = self.url(target.entry)
        urls = {name: self.url(target.entry, name) for name in ACTIONS}
        shared = {
            "target": target,
            "urls": urls | {"page": page, "history": self._history(target)},
            "may_send": request.user.has_perm(SEND),
            "may_delete": request.user.has_perm(DELETE),
            "may_disconnect": request.user.has_perm(DISCONNECT),
            "may_see_gateways": self._may_see_gateways(request),
        }
        parents = target.parents
        if template != "page":
            parents = [*parents, (target.title, page)]
        return render(
            self._owner,
            request,
            f"admin/wsgateway/inboxentry/{template}.html",
            title,
            {**shared, **context},
            parents=parents,
            problems=problems,
            refresh=refresh,
        )

    def _may_see_gateways(self, request: HttpRequest) -> bool:
        return may_see(self._owner.admin_site, request, GatewayEntry)

    def _history(self, target: Target) -> str:
        opts, site = self._owner.opts, self._owner.admin_site
        view = f"admin:{opts.app_label}_{opts.model_name}_history"
        return reverse(view, args=[quote(target.entry.pk)], current_app=site.name)
