"""Keys of the server API in the admin: what each may do, when it was used, and revoking it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from wsgateway.admin.base import confirm, is_confirmed, log
from wsgateway.api import keys
from wsgateway.models import ApiKey
from wsgateway.readable import some

if TYPE_CHECKING:
    Base = admin.ModelAdmin[ApiKey]
else:
    Base = admin.ModelAdmin

__all__ = ["ApiKeyAdmin"]

QUESTION = (
    "Do you want to revoke these keys? Backends that use them are refused from their next request "
    "on. This cannot be undone."
)


@admin.register(ApiKey)
class ApiKeyAdmin(Base):
    """Shows keys, which `manage.py gateway key create` makes, and revokes them."""

    list_display = (
        "name",
        "prefix",
        "services_text",
        "actions_text",
        "rate",
        "created_at",
        "last_used_at",
        "revoked_at",
    )
    list_filter = (("revoked_at", admin.EmptyFieldListFilter),)
    search_fields = ("name", "prefix")
    fields = list_display
    actions = ("revoke",)

    @admin.display(description="services")
    def services_text(self, key: ApiKey) -> str:
        """Where it may act."""
        return ", ".join(key.services)

    @admin.display(description="actions")
    def actions_text(self, key: ApiKey) -> str:
        """What it may do."""
        return ", ".join(key.actions)

    @admin.action(description="Revoke the selected keys", permissions=["revoke"])
    def revoke(self, request: HttpRequest, chosen: QuerySet[ApiKey]) -> HttpResponse | None:
        """Ask, then make the keys useless."""
        rows = list(chosen.filter(revoked_at=None))
        if not rows:
            messages.warning(request, "These keys are revoked already.")
            return None
        if not is_confirmed(request):
            return confirm(
                self,
                request,
                "Revoke",
                QUESTION,
                items=[str(row) for row in rows],
                keep=[("action", "revoke"), *((ACTION_CHECKBOX_NAME, row.pk) for row in rows)],
            )
        revoked = keys.revoke(rows)
        log(request, rows, "Revoked.")
        messages.success(request, f"{some(revoked, 'key')} revoked.")
        return None

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may revoke keys."""
        return request.user.has_perm("wsgateway.revoke_apikey")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """A key is made by the command, which alone can show it."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Nothing is changed by hand."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Keys stay, so that a name in an old log can be looked up."""
        return False
