"""WSGATEWAY_WEBHOOKS: what no single value shows."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from wsgateway.checks.base import possible, sentence
from wsgateway.checks.values import readable
from wsgateway.conf import settings
from wsgateway.declared import discover
from wsgateway.services.registry import webhook_flaw
from wsgateway.webhooks.config import webhook_of

__all__ = ["check_production_webhooks", "check_webhooks"]


def check_webhooks(**kwargs: Any) -> list[CheckMessage]:
    """E014: a webhook that cannot be used."""
    if not possible("WSGATEWAY_WEBHOOKS", "WSGATEWAY_SERVICES_MODULE"):
        return []
    discover()
    flaws = []
    for name, options in sorted(settings.WEBHOOKS.items()):
        ca = webhook_of(options).endpoint.ca
        if flaw := webhook_flaw(name):
            flaws.append(flaw)
        elif ca and not readable(ca):
            flaws.append(f"the 'ca' of the webhook {name!r} is {ca!r}, which cannot be read")
    hint = "docs/how-to/webhooks.md shows how to set up a webhook."
    # Without httpx, each has the same flaw
    return [Error(sentence(flaw), hint=hint, id="wsgateway.E014") for flaw in dict.fromkeys(flaws)]


def check_production_webhooks(**kwargs: Any) -> list[CheckMessage]:
    """W110: what clients send goes over the network unencrypted."""
    if not possible("WSGATEWAY_WEBHOOKS"):
        return []
    found = {name: webhook_of(options).endpoint for name, options in settings.WEBHOOKS.items()}
    plain = sorted(name for name, endpoint in found.items() if endpoint.is_plain)
    if not plain:
        return []
    return [
        Warning(
            f"The webhooks of {', '.join(plain)} use http, so anybody on the way can read what "
            "clients send.",
            hint="Use https. Silence this check if the network is private.",
            id="wsgateway.W110",
        )
    ]
