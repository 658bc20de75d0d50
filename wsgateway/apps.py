"""The Django app. Starting it connects to nothing."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register

__all__ = ["WsGatewayConfig"]


class WsGatewayConfig(AppConfig):
    """Registers system checks, and what happens when log-ins end."""

    name = "wsgateway"
    verbose_name = "Websocket gateway"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks and receivers; called once by Django."""
        from wsgateway import checks, signals

        signals.connect()

        for check in checks.CHECKS:
            register(check, "wsgateway")
        for check in checks.DEPLOY_CHECKS:
            register(check, "wsgateway", deploy=True)
        for check in checks.DATABASE_CHECKS:
            register(check, "wsgateway", Tags.database, deploy=True)
