"""How this site installs another package's app."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["RunserverConfig"]


class RunserverConfig(AppConfig):
    """Daphne, for its command ``runserver``.

    Daphne's own configuration loads Twisted and autobahn into each process of the site, where
    only servers need them.
    """

    name = "daphne"
    verbose_name = "Daphne"
