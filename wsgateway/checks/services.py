"""WSGATEWAY_SERVICES and what ``@service`` declares."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from wsgateway.checks.base import possible
from wsgateway.conf import settings
from wsgateway.declared import ANY, declared_services, discover
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Subjects

__all__ = ["check_production_services", "check_services"]


def check_services(**kwargs: Any) -> list[CheckMessage]:
    """E002: a service that no stream can have; E010: one of topics; W004: one nobody may name."""
    if not possible("WSGATEWAY_PREFIX", "WSGATEWAY_SERVICES", "WSGATEWAY_SERVICES_MODULE"):
        return []
    try:
        subjects = Subjects(settings.PREFIX)
    except NameRefused:
        return []
    declared = declared_services()
    found: list[CheckMessage] = []
    for service in sorted(declared.services):
        try:
            subjects.require_service(service)
        except NameRefused as exc:
            hint = (
                "Choose a shorter name: NATS has a stream and a consumer that are named after it."
            )
            found.append(Error(f"{exc}.", hint=hint, id="wsgateway.E002"))
    both = sorted(declared.services & (declared.topics | declared.casts))
    if both:
        found.append(
            Error(
                f"WSGATEWAY_SERVICES lists {', '.join(both)}, which @topic declares.",
                hint="Remove it there, or rename the topics: a service has users or topics. "
                "Clients reach topics without that setting.",
                id="wsgateway.E010",
            )
        )
    unlisted = sorted(set() if declared.is_open else discover().keys() - declared.services)
    if unlisted:
        found.append(
            Warning(
                f"WSGATEWAY_SERVICES does not list {', '.join(unlisted)}.",
                hint="Add the services that clients should reach: others get no messages.",
                id="wsgateway.W004",
            )
        )
    return found


def check_production_services(**kwargs: Any) -> list[CheckMessage]:
    """W109: clients may name any service, and all of them share one queue."""
    if not possible("WSGATEWAY_SERVICES") or ANY not in (settings.SERVICES or ()):
        return []
    return [
        Warning(
            "WSGATEWAY_SERVICES is ['*']: one client can fill the queue of every service.",
            hint="List your services, or unset it if @service declares all of them.",
            id="wsgateway.W109",
        )
    ]
