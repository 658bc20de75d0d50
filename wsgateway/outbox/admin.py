"""The outbox in the admin: what waits, and what could not be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from wsgateway.outbox.models import OutboxMessage

if TYPE_CHECKING:
    Base = admin.ModelAdmin[OutboxMessage]
else:
    Base = admin.ModelAdmin

__all__ = ["OutboxMessageAdmin"]


@admin.register(OutboxMessage)
class OutboxMessageAdmin(Base):
    """Shows messages; failed ones can be tried again or deleted."""

    list_display = (
        "id",
        "service",
        "user",
        "is_topic",
        "kind",
        "size",
        "created_at",
        "failed_at",
        "error",
    )
    list_filter = ("service", ("failed_at", admin.EmptyFieldListFilter))
    search_fields = ("service", "user")
    actions = ("try_again",)
    exclude = ("payload",)

    @admin.display(description="bytes")
    def size(self, message: OutboxMessage) -> int:
        """Bytes in the payload."""
        return len(message.payload)

    @admin.action(description="Try to send the selected messages again", permissions=["delete"])
    def try_again(self, request: HttpRequest, messages: QuerySet[OutboxMessage]) -> None:
        """Let the relay take them again."""
        count = messages.update(failed_at=None, error="")
        self.message_user(request, f"{count} will be sent.")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nothing is written by hand."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: OutboxMessage | None = None) -> bool:
        """Nothing is changed by hand."""
        return False
