"""Users in the admin: who is online, and a page of each user's connections and messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.templatetags.static import static
from django.urls import URLPattern, reverse
from django.utils import timezone
from django.utils.html import format_html

from wsgateway.admin.accounts import name_of, users_named
from wsgateway.admin.inbox_pages import InboxPages
from wsgateway.admin.standing import UNKNOWN, Online, Standing, online_users, standings
from wsgateway.admin.targets import VIEW, Target
from wsgateway.readable import visible

if TYPE_CHECKING:
    Base = admin.ModelAdmin[Any]
else:
    Base = object

__all__ = ["GatewayUserMixin", "OnlineFilter", "take_over_stock_admin"]

COLUMNS = ("gateway_online", "gateway_sockets", "gateway_waiting", "gateway_last_seen")

STATES = {True: ("yes", "online"), False: ("no", "offline"), None: ("unknown", "unknown")}
"""Django's icon, and the text."""


class OnlineFilter(admin.SimpleListFilter):
    """Shows only users with an open socket; asks for all of them at once."""

    title = "online now"
    parameter_name = "online"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """Offer one choice besides all."""
        return [("yes", "Online now")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return those of *queryset* who are online; nobody, and a message, if that is unknown."""
        if self.value() != "yes":
            return queryset
        online = _online(request)
        return queryset.none() if online.names is None else users_named(queryset, online.names)

    def get_facet_counts(self, pk_attname: str, filtered_qs: QuerySet[Any]) -> dict[str, Any]:
        """Count nobody: that would ask the gateways whenever the list is shown."""
        return {}


def _online(request: HttpRequest) -> Online:
    """Return who is online, asked once a request: with facets Django filters many times."""
    found: Online | None = getattr(request, "gateway_online", None)
    if found is None:
        found = request.gateway_online = online_users()  # type: ignore[attr-defined]
        for text in found.problems:
            messages.error(request, text)
    return found


class _ChangeList(ChangeList):
    """A list that looks up all users of a page together."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        users = list(self.result_list)  # which a queryset remembers
        names = {user.pk: name_of(user) for user in users}
        found, problems = standings({name for name in names.values() if name is not None})
        for user in users:
            user.gateway_standing = found.get(names[user.pk] or "", UNKNOWN)
        for text in problems:
            messages.warning(request, text)


class GatewayUserMixin(Base):
    """Adds to the admin of a user model who is online, and what waits for them.

    Put it before the class that it extends: ``class MyUserAdmin(GatewayUserMixin, UserAdmin)``.
    Staff see it with the permission ``wsgateway.view_inbox``. The columns come second, unless
    ``list_display`` names them.

    Raises:
        ImproperlyConfigured: A class has it behind the class that it should extend.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        line = cls.__mro__
        if admin.ModelAdmin in line[: line.index(GatewayUserMixin)]:
            raise ImproperlyConfigured(
                f"{cls.__name__} has GatewayUserMixin behind the class that it extends, where it "
                f"does nothing; put it first: class {cls.__name__}(GatewayUserMixin, …)"
            )

    def get_urls(self) -> list[URLPattern]:
        """Add the page of a user's connections and messages."""
        return [*self._gateway_pages.urls(), *super().get_urls()]

    def gateway_url(self, user: Any) -> str:
        """Return the URL of the page of a user's connections and messages."""
        return self._gateway_pages.url(user)

    @property
    def _gateway_pages(self) -> InboxPages:
        return InboxPages(self, self._gateway_target)

    def _gateway_target(self, request: HttpRequest, object_id: str) -> Target:
        user = self.get_object(request, object_id)
        if not self.has_view_permission(request, user):
            raise PermissionDenied
        if user is None:
            raise Http404
        name = visible(str(user))
        args = [quote(user.pk)]
        view = f"admin:{self.opts.app_label}_{self.opts.model_name}_change"
        url = reverse(view, args=args, current_app=self.admin_site.name)
        parents = [(name, url)]
        return Target(user, f"Websockets of {name}", name_of(user), parents, account=user)

    # -- the list --------------------------------------------------------------------------

    def get_list_display(self, request: HttpRequest) -> Any:
        """Add the columns, for those who may see them."""
        listed = list(super().get_list_display(request))
        if not request.user.has_perm(VIEW):
            return [column for column in listed if column not in COLUMNS]
        own = [column for column in COLUMNS if column not in listed]
        return [*listed[:1], *own, *listed[1:]]

    def get_list_filter(self, request: HttpRequest) -> Any:
        """Add the filter, for those who may see the columns."""
        filters = [each for each in super().get_list_filter(request) if each is not OnlineFilter]
        return [OnlineFilter, *filters] if request.user.has_perm(VIEW) else filters

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Extend the list that the admin has, which may be its own."""
        found = super().get_changelist(request, **kwargs)
        if not request.user.has_perm(VIEW):
            return found
        return type(found.__name__, (_ChangeList, found), {})

    @admin.display(description="online")
    def gateway_online(self, user: Any) -> str:
        """Say whether the user has a socket, with a link to the page that shows it."""
        online = _standing(user).online
        icon, text = STATES[online]
        url = self.gateway_url(user)
        img = static(f"admin/img/icon-{icon}.svg")
        return format_html(
            '<a href="{}" class="nowrap"><img src="{}" alt=""> {}</a>', url, img, text
        )

    @admin.display(description="sockets")
    def gateway_sockets(self, user: Any) -> str:
        """Return how many sockets are open."""
        return _count(_standing(user).sockets)

    @admin.display(description="waiting")
    def gateway_waiting(self, user: Any) -> str:
        """Return how many messages no device of the user has received."""
        return _count(_standing(user).waiting)

    @admin.display(description="last seen")
    def gateway_last_seen(self, user: Any) -> Any:
        """Return when a device of the user last confirmed something."""
        standing = _standing(user)
        if standing.online:
            return "now"
        if standing.waiting is None:
            return "unknown"
        return standing.last_seen and timezone.localtime(standing.last_seen)

    # -- a user's form ---------------------------------------------------------------------

    def render_change_form(
        self,
        request: HttpRequest,
        context: dict[str, Any],
        add: bool = False,
        change: bool = False,
        form_url: str = "",
        obj: Any = None,
    ) -> HttpResponse:
        """Add a link to the user's connections and messages, in whichever template there is."""
        response = super().render_change_form(request, context, add, change, form_url, obj)
        may_see = change and obj is not None and request.user.has_perm(VIEW)
        if may_see and isinstance(response, TemplateResponse):
            base = response.resolve_template(response.template_name)
            own = {"gateway_base": base, "gateway_url": self.gateway_url(obj)}
            response.context_data = {**(response.context_data or {}), **own}
            response.template_name = "admin/wsgateway/user_change_form.html"
        return response


def _standing(user: Any) -> Standing:
    found: Standing = getattr(user, "gateway_standing", UNKNOWN)
    return found


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def take_over_stock_admin() -> None:
    """Register the mixin for users whose admin is Django's own; a project's own stays."""
    if not apps.is_installed("django.contrib.auth"):
        return
    from django.contrib.auth.admin import UserAdmin  # registers it, if nobody has

    class GatewayUserAdmin(GatewayUserMixin, UserAdmin):  # type: ignore[type-arg]
        """Django's own, extended."""

    model, site = get_user_model(), admin.site
    if site.is_registered(model) and type(site.get_model_admin(model)) is UserAdmin:
        site.unregister(model)
        site.register(model, GatewayUserAdmin)
