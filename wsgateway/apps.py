"""The Django app. Starting it connects to nothing."""

from __future__ import annotations

from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_out
from django.core.checks import register

__all__ = ["WsGatewayConfig"]


class WsGatewayConfig(AppConfig):
    """Registers system checks, and what happens at log-out."""

    name = "wsgateway"
    verbose_name = "Websocket gateway"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks and receivers; called once by Django."""
        from wsgateway import checks
        from wsgateway.logout import on_logout

        user_logged_out.connect(on_logout, dispatch_uid="wsgateway.logout")

        for check in checks.CHECKS:
            register(check, "wsgateway")
        for check in checks.DEPLOY_CHECKS:
            register(check, "wsgateway", deploy=True)
