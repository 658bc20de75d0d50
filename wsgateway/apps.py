"""The Django app. Starting it connects to nothing."""

from __future__ import annotations

import logging

from django.apps import AppConfig, apps
from django.core.checks import register
from django.core.exceptions import ImproperlyConfigured

from wsgateway.conf import settings

__all__ = ["WsGatewayConfig", "require_installed", "show_log_in_development"]


def require_installed() -> None:
    """Return if the project has this app.

    Raises:
        ImproperlyConfigured: It has not; then nobody has registered checks and receivers.
    """
    if not apps.is_installed(WsGatewayConfig.name):
        raise ImproperlyConfigured(
            "'wsgateway' is not in INSTALLED_APPS; add it there: commands, system checks, "
            "templates and the closing of sockets at logout need the app"
        )


def show_log_in_development() -> None:
    """Print what the gateway logs while DEBUG is on, as Django does with its own log.

    Only where nothing else would: not if the project or the server has set up logging.
    """
    logger = logging.getLogger("wsgateway")
    if not settings.debug or logger.hasHandlers():
        return
    console = logging.StreamHandler()
    console.addFilter(lambda record: not logging.root.handlers)  # set up since then
    logger.addHandler(console)
    logger.setLevel(logging.INFO)


class WsGatewayConfig(AppConfig):
    """Registers system checks, and what happens when logins end."""

    name = "wsgateway"
    verbose_name = "Websocket gateway"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks and receivers; called once by Django."""
        from wsgateway import checks, receivers

        receivers.connect()
        show_log_in_development()

        for check in checks.CHECKS:
            register(check, "wsgateway")
        for check in checks.DEPLOY_CHECKS:
            register(check, "wsgateway", deploy=True)
