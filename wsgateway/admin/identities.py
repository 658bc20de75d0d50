"""Identities that need not be Django users, found by service and name."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.contrib.auth import get_user_model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern

from wsgateway.admin.accounts import account_named
from wsgateway.admin.base import PageAdmin, render
from wsgateway.admin.finding import find_identities
from wsgateway.admin.inbox_pages import InboxPages
from wsgateway.admin.targets import VIEW, Target
from wsgateway.admin.users import GatewayUserMixin
from wsgateway.models import InboxEntry
from wsgateway.readable import visible

__all__ = ["InboxAdmin"]


@admin.register(InboxEntry)
class InboxAdmin(PageAdmin):
    """Finds identities, and shows the page of each."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The same permission as for the columns in the list of users."""
        return request.user.has_perm(VIEW)

    def get_urls(self) -> list[URLPattern]:
        """Add the page of an identity."""
        return [*self._pages.urls(), *super().get_urls()]

    @property
    def _pages(self) -> InboxPages:
        return InboxPages(self, self._target)

    def _target(self, request: HttpRequest, object_id: str) -> Target:
        entry = InboxEntry(pk=object_id)
        if entry.inbox is None:
            raise Http404
        service, name = entry.inbox
        url = self._account_url(request, name)
        title = f"{visible(name)} at {visible(service)}"
        return Target(entry, title, name, services=[service], account_url=url)

    def _account_url(self, request: HttpRequest, name: str) -> str:
        """Return the URL of the page of the Django user called *name*; empty if there is none."""
        model, site = get_user_model(), self.admin_site
        if not site.is_registered(model):
            return ""
        owner: object = site.get_model_admin(model)
        if not isinstance(owner, GatewayUserMixin):
            return ""
        account = account_named(name)
        if account is None or not owner.has_view_permission(request, account):
            return ""
        return owner.gateway_url(account)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Lead from the admin's log to the page of the identity."""
        self.require_view(request)
        entry = InboxEntry(pk=unquote(object_id))
        if entry.inbox is None:
            raise Http404
        return HttpResponseRedirect(self._pages.url(entry))

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the identities of a service, by name; or the page of the one that is asked for."""
        self.require_view(request)
        service, name = request.GET.get("service", ""), request.GET.get("name", "")
        found = find_identities(service, name, request.GET.get("after") or None)
        rows = [(row, self._pages.url(InboxEntry.of(row.inbox))) for row in found.rows]
        context = {"found": found, "rows": rows, "name": name}
        if found.exact is not None:
            context["exact_url"] = self._pages.url(InboxEntry.of(found.exact))
        template = "admin/wsgateway/inboxentry/list.html"
        return render(self, request, template, "Inboxes", context, problems=found.problems)
