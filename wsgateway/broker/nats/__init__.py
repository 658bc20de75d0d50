"""NATS JetStream; the only place that imports nats-py."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.broker.nats.link import LinkOptions
from wsgateway.broker.nats.streams import wanted_streams
from wsgateway.subjects import Subjects

if TYPE_CHECKING:
    from wsgateway.conf import Settings

__all__ = ["NatsBroker", "broker_from_settings", "options_from_settings"]


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not (settings.NATS_TLS_CA or settings.NATS_TLS_CERT):
        return None
    context = ssl.create_default_context(cafile=settings.NATS_TLS_CA or None)
    if settings.NATS_TLS_CERT:
        context.load_cert_chain(settings.NATS_TLS_CERT, settings.NATS_TLS_KEY or None)
    return context


def options_from_settings(settings: Settings, servers: tuple[str, ...] = ()) -> LinkOptions:
    """Return how to connect.

    Args:
        settings: The project's.
        servers: URLs; empty: those of ``NATS_BROKER_URL``, else the embedded server's.

    Raises:
        BrokerMisconfigured: No server is configured and an embedded one may not start.
    """
    if not servers:
        servers = tuple(url.strip() for url in settings.URL.split(",") if url.strip())
    if not servers:
        from wsgateway.broker.embedded import embedded_url_from_settings

        servers = (embedded_url_from_settings(),)
    servers = tuple(url if "://" in url else f"nats://{url}" for url in servers)
    return LinkOptions(
        servers=servers,
        user=settings.NATS_USER,
        password=settings.NATS_PASSWORD,
        token=settings.NATS_TOKEN,
        credentials=settings.NATS_CREDENTIALS,
        nkey_seed=settings.NATS_NKEY_SEED,
        tls=_tls(settings),
        tls_hostname=settings.NATS_TLS_HOSTNAME,
        connect_timeout=settings.CONNECT_TIMEOUT,
        timeout=settings.BROKER_TIMEOUT,
        publish_timeout=settings.PUBLISH_TIMEOUT,
    )


def broker_from_settings(settings: Settings) -> NatsBroker:
    """Return an unopened broker as the project's settings describe it."""
    subjects = Subjects(settings.PREFIX)
    return NatsBroker(options_from_settings(settings), subjects, wanted_streams(subjects, settings))
