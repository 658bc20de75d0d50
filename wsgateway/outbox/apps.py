"""The optional app."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["OutboxConfig"]


class OutboxConfig(AppConfig):
    """See the package."""

    name = "wsgateway.outbox"
    label = "wsgateway_outbox"
    verbose_name = "Outbox"
    default_auto_field = "django.db.models.BigAutoField"
