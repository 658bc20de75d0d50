"""Gateways in the admin: what each does, and draining one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse

from wsgateway import presence
from wsgateway.admin.base import (
    REFRESH,
    PageAdmin,
    carry_out,
    confirm,
    is_confirmed,
    log,
    render,
)
from wsgateway.admin.lookups import ask
from wsgateway.admin.questions import gateways
from wsgateway.exceptions import NameRefused
from wsgateway.models import GatewayEntry
from wsgateway.protocol.subjects import encode_token

if TYPE_CHECKING:
    from wsgateway.presence import Gateway, Gateways

__all__ = ["GatewayAdmin"]

TEMPLATES = "admin/wsgateway/gatewayentry"
CHANGELIST = "admin:wsgateway_gatewayentry_changelist"
DRAIN = (
    "Do you want to drain gateway {}? It asks its clients to reconnect, spread over time, and "
    "takes no new ones until it is restarted. No message is lost."
)


def totals(found: Gateways) -> dict[str, float]:
    """Return what all gateways do together."""
    names = {name for each in found for name in each.rates}
    return {
        "sockets": sum(each.sockets for each in found),
        "memory": sum(each.memory for each in found),
        **{name: sum(each.rates.get(name, 0.0) for each in found) for name in names},
    }


def _is_id(name: str) -> bool:
    """Say whether a gateway can have this id, which is a subject token as it is."""
    try:
        return encode_token(name) == name
    except NameRefused:
        return False


@admin.register(GatewayEntry)
class GatewayAdmin(PageAdmin):
    """The gateways that answer now, and those that should and do not."""

    def get_urls(self) -> list[URLPattern]:
        """Add the page that asks before a gateway is drained."""
        view = self.admin_site.admin_view(self.drain_view)
        name = "wsgateway_gatewayentry_drain"
        return [path("<path:object_id>/drain/", view, name=name), *super().get_urls()]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show all."""
        self.require_view(request)
        answers = ask(gateways=gateways)
        found: Gateways | None = answers["gateways"]
        context = {
            "gateways": found,
            "totals": totals(found) if found else None,
            "may_drain": self.may(request, "drain_gateway"),
        }
        return render(
            self,
            request,
            f"{TEMPLATES}/list.html",
            "Gateways",
            context,
            refresh=REFRESH,
            problems=answers.problems,
        )

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show one gateway."""
        self.require_view(request)
        name = unquote(object_id)
        answers = ask(gateways=gateways)
        found: Gateways | None = answers["gateways"]
        gateway: Gateway | None = next((each for each in found or () if each.id == name), None)
        context = {
            "name": name,
            "gateways": found,
            "gateway": gateway,
            "is_silent": found is not None and name in found.silent,
            "may_drain": self.may(request, "drain_gateway"),
        }
        return render(
            self,
            request,
            f"{TEMPLATES}/detail.html",
            name,
            context,
            refresh=REFRESH,
            problems=answers.problems,
        )

    def drain_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then drain the gateway."""
        self.require_view(request)
        self.require(request, "drain_gateway")
        name = unquote(object_id)
        if not _is_id(name):
            raise Http404
        back = reverse(CHANGELIST, current_app=self.admin_site.name)
        if not is_confirmed(request):
            view, site = "admin:wsgateway_gatewayentry_change", self.admin_site.name
            parents = [(name, reverse(view, args=[quote(name)], current_app=site))]
            return confirm(self, request, "Drain", DRAIN.format(name), parents=parents, back=back)
        drained = carry_out(request, lambda broker: presence.adrain(name))
        if drained:
            log(request, [GatewayEntry(name)], "Drained.")
            messages.success(request, f"Gateway {name} is draining.")
        elif drained is None:  # one that wakes up later may do it
            log(request, [GatewayEntry(name)], "Tried to drain it; not confirmed.")
        else:
            messages.error(request, f"Gateway {name} is not running, so it was not drained.")
        return redirect(back)
