"""Which services this process declares, and who may talk to them."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.utils.module_loading import autodiscover_modules

from wsgateway.conf import settings

__all__ = [
    "ANY",
    "EVERYTHING",
    "NOTHING",
    "Declared",
    "declared_services",
    "discover",
    "registered",
]

ANY = "*"
"""In ``WSGATEWAY_SERVICES``: clients may name any service."""


class Declared(NamedTuple):
    """The services that a process declares.

    Attributes:
        services: Their names; it makes their streams.
        is_open: Whether clients may name any service; then all share one stream.
    """

    services: frozenset[str] = frozenset()
    is_open: bool = False


NOTHING = Declared()
EVERYTHING = Declared(is_open=True)


registered: dict[str, Any] = {}
"""What `wsgateway.service` has registered, by name: `wsgateway.services.registry.Service`."""


def discover() -> dict[str, Any]:
    """Import ``ws_services`` of every installed app; return what is registered then."""
    autodiscover_modules(settings.SERVICES_MODULE)
    return dict(registered)


def declared_services() -> Declared:
    """Return what ``WSGATEWAY_SERVICES`` lists; without it, what ``@service`` registers."""
    listed = settings.SERVICES
    if listed is None:
        return Declared(frozenset(discover()))
    if ANY in listed:
        return EVERYTHING
    return Declared(frozenset(listed))
