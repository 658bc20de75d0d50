"""NATS_BROKER_URL: where NATS is."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error

from wsgateway.broker.addresses import Address, split_urls, url_cure
from wsgateway.checks.base import ended, possible, sentence
from wsgateway.conf import settings

__all__ = ["check_urls", "url_problem"]


def check_urls(**kwargs: Any) -> list[CheckMessage]:
    """E006: an entry of NATS_BROKER_URL that is not the URL of a NATS server."""
    if not possible("NATS_BROKER_URL"):
        return []
    return [
        Error(
            ended(f"NATS_BROKER_URL has an entry that is not the URL of a NATS server: {problem}"),
            hint=sentence(url_cure(settings.URL)),
            id="wsgateway.E006",
        )
        for url in split_urls(settings.URL)
        if (problem := url_problem(url))
    ]


def url_problem(url: str) -> str | None:
    """Return what is wrong with *url*, without the password that it may hold."""
    try:
        Address.parse(url)
    except ValueError as exc:
        return str(exc)
    return None
