"""Where a connection leads."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from wsgateway.broker.base import Broker
from wsgateway.conf import settings

if TYPE_CHECKING:
    from wsgateway.broker.nats.connection import ConnectionOptions

__all__ = ["Target", "broker_of", "load", "target_of"]


class Target(NamedTuple):
    """Where a connection leads; those of a loop with the same one are the same.

    Attributes:
        options: How to connect to NATS; None: the broker within this process.
        prefix: First token of every subject.
    """

    options: ConnectionOptions | None
    prefix: str


def target_of(servers: tuple[str, ...] = (), prefix: str | None = None) -> Target:
    """Return where a broker is.

    Args:
        servers: URLs of NATS; empty: as the settings say.
        prefix: First token of every subject; None: ``WSGATEWAY_PREFIX``.

    Raises:
        BrokerMisconfigured: The settings name no usable server.
    """
    prefix = settings.PREFIX if prefix is None else prefix
    if settings.BROKER == "memory" and not servers:
        return Target(None, prefix)
    from wsgateway.broker.nats import options_from_settings

    return Target(options_from_settings(settings, servers), prefix)


def broker_of(target: Target) -> Broker:
    """Return a broker there, not opened."""
    if target.options is None:
        from wsgateway.broker.memory import MemoryBroker

        return MemoryBroker.from_settings(settings, target.prefix)
    from wsgateway.broker.nats import make_broker

    return make_broker(target.options, target.prefix, settings)


def load(servers: tuple[str, ...] = ()) -> None:
    """Import the modules of a broker, which takes a tenth of a second with NATS.

    A server does this before it listens: clients that connect while it imports would overflow
    the queue of the kernel, and wait a second for their next try.

    Args:
        servers: As for `target_of`.
    """
    if settings.BROKER == "memory" and not servers:
        import wsgateway.broker.memory
    else:
        import wsgateway.broker.nats.broker  # noqa: F401
