"""The optional app."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

__all__ = ["OutboxConfig"]


class OutboxConfig(AppConfig):
    """See the package."""

    name = "wsgateway.outbox"
    label = "wsgateway_outbox"
    verbose_name = "Outbox"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the check for the app `wsgateway`, which cannot report its own absence."""
        from wsgateway.checks.installation import check_outbox

        register(check_outbox, "wsgateway")
