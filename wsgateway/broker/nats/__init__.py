"""NATS JetStream; the only place that imports nats-py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsgateway.broker.addresses import Address, split_urls, url_cure
from wsgateway.broker.nats.versions import require_tried_version
from wsgateway.declared import declared_services
from wsgateway.exceptions import BrokerMisconfigured
from wsgateway.protocol.subjects import Subjects

try:
    from wsgateway.broker.nats.broker import NatsBroker
    from wsgateway.broker.nats.options import ConnectionOptions
    from wsgateway.broker.nats.specs import wanted_streams
except ImportError:
    require_tried_version()
    raise

if TYPE_CHECKING:
    from wsgateway.conf import Settings

__all__ = ["NatsBroker", "broker_from_settings", "make_broker", "options_from_settings"]


def options_from_settings(settings: Settings, servers: tuple[str, ...] = ()) -> ConnectionOptions:
    """Return how to connect.

    Args:
        settings: The project's.
        servers: URLs; empty: those of ``NATS_BROKER_URL``, else the embedded server's.

    Raises:
        BrokerMisconfigured: A URL is not that of a NATS server, or no server is configured and an
            embedded one may not start.
    """
    unreachable_cure = ""
    if not servers:
        from wsgateway.broker.project_server import can_embed, embedded_url_from_settings

        servers = tuple(split_urls(settings.URL))
        if servers and can_embed():
            unreachable_cure = "or leave NATS_BROKER_URL empty to use the embedded server"
        servers = servers or (embedded_url_from_settings(),)
    _require_urls(servers, settings)
    return ConnectionOptions(
        servers=servers,
        user=settings.NATS_USER,
        password=settings.NATS_PASSWORD,
        token=settings.NATS_TOKEN,
        credentials=settings.NATS_CREDENTIALS,
        nkey_seed=settings.NATS_NKEY_SEED,
        tls_ca=settings.NATS_TLS_CA,
        tls_cert=settings.NATS_TLS_CERT,
        tls_key=settings.NATS_TLS_KEY,
        tls_hostname=settings.NATS_TLS_HOSTNAME,
        discover=not settings.NATS_IGNORE_DISCOVERED,
        connect_timeout=settings.CONNECT_TIMEOUT,
        timeout=settings.BROKER_TIMEOUT,
        publish_timeout=settings.PUBLISH_TIMEOUT,
        unreachable_cure=unreachable_cure,
    )


def _require_urls(servers: tuple[str, ...], settings: Settings) -> None:
    for url in servers:
        try:
            Address.parse(url)
        except ValueError as exc:
            raise BrokerMisconfigured(
                f"NATS_BROKER_URL has an entry that is not the URL of a NATS server: {exc}; "
                f"{url_cure(settings.URL)}"
            ) from None


def make_broker(options: ConnectionOptions, prefix: str, settings: Settings) -> NatsBroker:
    """Return an unopened broker with the streams that the project's settings want.

    Raises:
        BrokerMisconfigured: This version of nats-py was not tried.
    """
    require_tried_version()
    subjects = Subjects(prefix)
    specs, devices = wanted_streams(subjects, settings), settings.MAX_DEVICES_PER_USER
    size = settings.MAX_MESSAGE_SIZE
    return NatsBroker(options, subjects, specs, devices, declared_services(), size)


def broker_from_settings(settings: Settings) -> NatsBroker:
    """Return an unopened broker as the project's settings describe it."""
    return make_broker(options_from_settings(settings), settings.PREFIX, settings)
