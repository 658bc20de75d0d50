"""The Django app. Starting it connects to nothing."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

__all__ = ["WsGatewayConfig"]


class WsGatewayConfig(AppConfig):
    """Registers the system checks."""

    name = "wsgateway"
    verbose_name = "Websocket gateway"

    def ready(self) -> None:
        """Register checks; called once by Django."""
        from wsgateway import checks

        for check in checks.CHECKS:
            register(check, "wsgateway")
        for check in checks.DEPLOY_CHECKS:
            register(check, "wsgateway", deploy=True)
