"""Which services this process declares, and who may talk to them."""

from __future__ import annotations

from typing import NamedTuple

from wsgateway.conf import settings

__all__ = ["ANY", "EVERYTHING", "NOTHING", "Declared", "declared_services"]

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


def declared_services() -> Declared:
    """Return what ``WSGATEWAY_SERVICES`` lists; without it, what ``@service`` registers."""
    listed = settings.SERVICES
    if listed is None:
        # Not above: handlers import what imports this
        from wsgateway.services.registry import discover

        return Declared(frozenset(discover()))
    if ANY in listed:
        return EVERYTHING
    return Declared(frozenset(listed))
