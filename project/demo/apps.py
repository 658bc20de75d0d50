"""The Django app of the demonstration."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register

__all__ = ["DemoConfig"]


class DemoConfig(AppConfig):
    """Registers the check for demo users."""

    name = "project.demo"
    verbose_name = "Demonstration"

    def ready(self) -> None:
        """Register it; called once by Django."""
        from project.demo.checks import check_demo_users

        register(check_demo_users, Tags.database, deploy=True)
