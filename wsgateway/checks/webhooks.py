"""WSGATEWAY_WEBHOOKS and its like: what no single value shows."""

from __future__ import annotations

import ssl
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from wsgateway.checks.base import possible, sentence
from wsgateway.checks.values import readable
from wsgateway.conf import settings
from wsgateway.declared import discover
from wsgateway.services.registry import webhook_flaw
from wsgateway.webhooks.config import (
    Endpoint,
    events_webhook_of,
    identity_webhook_of,
    webhook_of,
)
from wsgateway.webhooks.sender import missing_httpx

__all__ = ["check_production_webhooks", "check_webhook_package", "check_webhooks"]

SETTINGS = (
    "WSGATEWAY_WEBHOOKS",
    "WSGATEWAY_EVENTS_WEBHOOK",
    "WSGATEWAY_IDENTITY_WEBHOOK",
)


def check_webhooks(**kwargs: Any) -> list[CheckMessage]:
    """E014: a webhook that cannot be used."""
    if not possible(*SETTINGS, "WSGATEWAY_SERVICES_MODULE"):
        return []
    discover()
    flaws = [flaw for name in sorted(settings.WEBHOOKS) if (flaw := webhook_flaw(name))]
    flaws += [
        f"the 'ca' of {where} is {endpoint.ca!r}, {flaw}"
        for where, endpoint in _endpoints().items()
        if endpoint.ca and (flaw := _authority_flaw(endpoint.ca))
    ]
    hint = "docs/how-to/webhooks.md shows how to set up a webhook."
    return [Error(sentence(flaw), hint=hint, id="wsgateway.E014") for flaw in flaws]


def check_webhook_package(**kwargs: Any) -> list[CheckMessage]:
    """W020: what webhooks need is not installed; not an error where nothing sends to them."""
    if not possible(*SETTINGS) or not _endpoints() or not (flaw := missing_httpx()):
        return []
    hint = (
        "runservice, runevents and gateways that send to a webhook need it. If this machine runs "
        "none of them, silence this check."
    )
    return [Warning(sentence(flaw), hint=hint, id="wsgateway.W020")]


def _authority_flaw(path: str) -> str:
    """Return why nobody's certificate can be signed by what a file holds; "" if it can."""
    if not readable(path):
        return "which cannot be read"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError):
        return "which holds no certificate that OpenSSL can read"
    return "" if context.cert_store_stats()["x509"] else "which holds no certificate"


def _endpoints() -> dict[str, Endpoint]:
    """Return every endpoint that a setting names, by the words for it."""
    found = {
        f"the webhook {name!r}": webhook_of(options).endpoint
        for name, options in sorted(settings.WEBHOOKS.items())
    }
    if options := settings.EVENTS_WEBHOOK:
        found["WSGATEWAY_EVENTS_WEBHOOK"] = events_webhook_of(options).endpoint
    if options := settings.IDENTITY_WEBHOOK:
        found["WSGATEWAY_IDENTITY_WEBHOOK"] = identity_webhook_of(options).endpoint
    return found


def check_production_webhooks(**kwargs: Any) -> list[CheckMessage]:
    """W110: what is sent goes over the network unencrypted."""
    if not possible(*SETTINGS):
        return []
    return [
        Warning(
            sentence(f"{where} uses http, so anybody on the way can read what is sent"),
            hint="Use https. Silence this check if the network is private.",
            id="wsgateway.W110",
        )
        for where, endpoint in _endpoints().items()
        if endpoint.is_plain
    ]
