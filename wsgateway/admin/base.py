"""What the gateway's pages in the admin share: permissions, rendering, confirmation, the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.cache import patch_vary_headers

from wsgateway.broker import runtime
from wsgateway.broker.connection import Action
from wsgateway.exceptions import WsGatewayError
from wsgateway.readable import visible

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractBaseUser

    Base = admin.ModelAdmin[Model]
else:
    Base = admin.ModelAdmin

__all__ = [
    "REFRESH",
    "PageAdmin",
    "carry_out",
    "confirm",
    "is_confirmed",
    "log",
    "may_see",
    "render",
]

T = TypeVar("T")

REFRESH = 5
"""Seconds after which a page asks for what has changed, if its browser runs scripts."""
REFRESH_HEADER = "X-Wsgateway-Refresh"
"""Sent by ``admin.js``, which wants only what changes."""


def render(
    page: admin.ModelAdmin[Any],
    request: HttpRequest,
    template: str,
    title: str,
    context: Mapping[str, Any],
    *,
    parents: Sequence[tuple[str, str]] = (),
    refresh: int | None = None,
    problems: Sequence[str] = (),
) -> HttpResponse:
    """Return a page of the admin or, if the page's script asks, only the part that changes.

    Args:
        page: Whose page it is.
        request: Who wants it.
        template: Extends ``base``, and puts what changes into its block ``live``.
        title: The page's.
        context: For the template.
        parents: Text and URL of the pages above it, below the list of the model.
        refresh: Seconds after which the page asks again; None: it does not.
        problems: Why something is unknown, shown above everything else.
    """
    site = page.admin_site
    request.current_app = site.name  # as Django's own views do
    everything = {**context, "problems": problems, "opts": page.opts}
    if REFRESH_HEADER in request.headers:
        everything["base"] = "admin/wsgateway/partial.html"
    else:
        own = {"base": "admin/wsgateway/page.html", "parents": parents, "refresh": refresh}
        everything = {**site.each_context(request), **everything, **own, "title": title}
    response = TemplateResponse(request, template, everything)
    patch_vary_headers(response, [REFRESH_HEADER])
    return response


def confirm(
    page: admin.ModelAdmin[Any],
    request: HttpRequest,
    title: str,
    question: str,
    *,
    items: Sequence[str] = (),
    keep: Iterable[tuple[str, Any]] = (),
    parents: Sequence[tuple[str, str]] = (),
    back: str = "",
) -> HttpResponse:
    """Ask whether the operator is sure. The answer is a POST to the same URL; see `is_confirmed`.

    Args:
        page: Whose page it is.
        request: What they asked for.
        title: The page's.
        question: What happens, and what is lost.
        items: What it happens to.
        keep: Fields of the form that the answer repeats.
        parents: The same as for `render`.
        back: Where "take me back" leads; empty: to the list of the model.
    """
    return render(
        page,
        request,
        "admin/wsgateway/confirm.html",
        title,
        {"question": question, "items": items, "keep": list(keep), "back": back},
        parents=parents,
    )


def is_confirmed(request: HttpRequest) -> bool:
    """Say whether the operator has answered `confirm` with yes."""
    return request.method == "POST" and "confirmed" in request.POST


def may_see(site: admin.AdminSite, request: HttpRequest, model: type[Model]) -> bool:
    """Say whether *site* has pages of *model*, and the user may see them."""
    return site.is_registered(model) and site.get_model_admin(model).has_view_permission(request)


def carry_out(request: HttpRequest, action: Action[T]) -> T | None:
    """Do what an operator wants; tell them if it fails.

    Returns:
        What *action* returns; None if it failed.
    """
    try:
        return runtime.call_sync(action)
    except WsGatewayError as exc:
        messages.error(request, str(exc))
        return None


def log(request: HttpRequest, objects: Iterable[Model], text: str, flag: int = CHANGE) -> None:
    """Record what was done to *objects* in the admin's log."""
    user = cast("AbstractBaseUser", request.user)  # nobody else passes the admin's login
    LogEntry.objects.log_actions(user.pk, list(objects), flag, visible(text))


class PageAdmin(Base):
    """A model without a table: its pages show what the broker and the processes say.

    Nothing is added, changed or deleted by Django's own views. What staff may do besides looking
    is a permission of its own, see `may`.
    """

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nothing is written by hand."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nothing is changed by hand, unless the model has that permission."""
        return self._exists("change") and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nothing is deleted by hand, unless the model has that permission."""
        return self._exists("delete") and super().has_delete_permission(request, obj)

    def _exists(self, permission: str) -> bool:
        return permission in self.opts.default_permissions

    def may(self, request: HttpRequest, action: str) -> bool:
        """Say whether the user has the permission for *action*, for example ``drain_gateway``."""
        return request.user.has_perm(f"{self.opts.app_label}.{action}")

    def require_view(self, request: HttpRequest) -> None:
        """Refuse who may not see these pages.

        Raises:
            PermissionDenied: They may not.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied

    def require(self, request: HttpRequest, action: str) -> None:
        """Refuse who may not do *action*.

        Raises:
            PermissionDenied: They may not.
        """
        if not self.may(request, action):
            raise PermissionDenied

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Model:
        """Return what stands for the object with this id, for Django's own pages."""
        return self.model(pk=object_id)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        """Refuse: there is no row to delete."""
        raise PermissionDenied
