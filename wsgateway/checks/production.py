"""What is safe in development only; ``check --deploy`` reports it."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from wsgateway.broker.addresses import Address, split_urls
from wsgateway.checks.base import LOOPBACK, possible
from wsgateway.checks.identity import resolver_problem
from wsgateway.checks.servers import url_problem
from wsgateway.conf import settings

__all__ = [
    "check_production_broker",
    "check_production_identity",
    "check_production_metrics",
    "check_production_origins",
    "check_production_replicas",
    "check_production_transport",
]

SHORTEST_TOKEN = 16
"""Characters; Python's ``secrets.token_urlsafe()`` makes 43."""
PLAIN_COOKIES = "wsgateway.identity.CookieIdentity"


def check_production_broker(**kwargs: Any) -> list[CheckMessage]:
    """E101, E102, W103: where messages go in production."""
    if not possible("PUBSUB_BROKER", "NATS_BROKER_URL", "WSGATEWAY_STORAGE"):
        return []
    if settings.BROKER == "memory":
        return [
            Error(
                "PUBSUB_BROKER is 'memory', which works within one process only and keeps nothing.",
                hint="Set PUBSUB_BROKER to 'nats'.",
                id="wsgateway.E101",
            )
        ]
    found: list[CheckMessage] = []
    if not settings.URL.strip():
        found.append(
            Error(
                "NATS_BROKER_URL is empty; the embedded server is for development only.",
                hint="Set it to your NATS servers, for example 'tls://nats.example.com:4222'.",
                id="wsgateway.E102",
            )
        )
    if settings.STORAGE == "memory":
        found.append(
            Warning(
                "WSGATEWAY_STORAGE is 'memory': messages do not survive a restart of NATS.",
                hint="Set it to 'file'.",
                id="wsgateway.W103",
            )
        )
    return found


def check_production_transport(**kwargs: Any) -> list[CheckMessage]:
    """W104: messages that cross a network unencrypted."""
    if not possible("NATS_BROKER_URL", "WSGATEWAY_NATS_TLS_CA", "WSGATEWAY_NATS_TLS_CERT"):
        return []
    if settings.NATS_TLS_CA or settings.NATS_TLS_CERT:
        return []
    hosts = [_plain_host(url) for url in split_urls(settings.URL) if not url_problem(url)]
    far = sorted({host for host in hosts if host})
    if not far:
        return []
    return [
        Warning(
            f"NATS_BROKER_URL reaches {', '.join(far)} without TLS.",
            hint="Use tls:// URLs, or silence this where the network itself is encrypted.",
            id="wsgateway.W104",
        )
    ]


def _plain_host(url: str) -> str | None:
    address = Address.parse(url)
    return None if address.tls or address.host in LOOPBACK else address.host


def check_production_replicas(**kwargs: Any) -> list[CheckMessage]:
    """W105: several servers, but one copy of each message."""
    if not possible("NATS_BROKER_URL", "WSGATEWAY_REPLICAS"):
        return []
    count = len(split_urls(settings.URL))
    if count < 3 or settings.REPLICAS > 1:
        return []
    return [
        Warning(
            f"NATS_BROKER_URL lists {count} servers, but WSGATEWAY_REPLICAS is 1.",
            hint="Set WSGATEWAY_REPLICAS to 3, so that no message depends on one server.",
            id="wsgateway.W105",
        )
    ]


def check_production_identity(**kwargs: Any) -> list[CheckMessage]:
    """E106: identities that anyone can claim."""
    if not possible("WSGATEWAY_IDENTITY") or not any(map(_is_plain, settings.IDENTITY)):
        return []
    return [
        Error(
            "WSGATEWAY_IDENTITY holds CookieIdentity: anyone can read anyone's messages.",
            hint="Use SessionIdentity, SignedCookieIdentity or TokenIdentity.",
            id="wsgateway.E106",
        )
    ]


def _is_plain(path: str) -> bool:
    if path == PLAIN_COOKIES or resolver_problem(path):
        return path == PLAIN_COOKIES
    return issubclass(import_string(path), import_string(PLAIN_COOKIES))


def check_production_origins(**kwargs: Any) -> list[CheckMessage]:
    """E107: pages of any site may open sockets with their visitors' cookies."""
    if not possible("WSGATEWAY_ALLOWED_ORIGINS"):
        return []
    origins, name = settings.ALLOWED_ORIGINS, "WSGATEWAY_ALLOWED_ORIGINS"
    if origins is None:
        origins, name = settings.allowed_hosts, "ALLOWED_HOSTS"
    if "*" not in origins:
        return []
    return [
        Error(
            f"{name} holds '*': any web site may open sockets as its visitors.",
            hint="List your own origins in WSGATEWAY_ALLOWED_ORIGINS.",
            id="wsgateway.E107",
        )
    ]


def check_production_metrics(**kwargs: Any) -> list[CheckMessage]:
    """W120: metrics that anyone can read; W121: a token that can be guessed."""
    if not possible("WSGATEWAY_METRICS_TOKEN", "WSGATEWAY_METRICS_NETWORKS"):
        return []
    found: list[CheckMessage] = [
        Warning(
            f"WSGATEWAY_METRICS_NETWORKS holds {each!r}: anyone can read the metrics.",
            hint="List the networks of your Prometheus servers, or use WSGATEWAY_METRICS_TOKEN.",
            id="wsgateway.W120",
        )
        for each in settings.METRICS_NETWORKS
        if not ip_network(each).prefixlen
    ]
    token = settings.METRICS_TOKEN
    if token and len(token) < SHORTEST_TOKEN:
        found.append(
            Warning(
                f"WSGATEWAY_METRICS_TOKEN has {len(token)} characters and can be guessed.",
                hint=f"Use {SHORTEST_TOKEN} or more random ones, for example of "
                "python -c 'import secrets; print(secrets.token_urlsafe())'.",
                id="wsgateway.W121",
            )
        )
    return found
