"""The broker of the running event loop."""

from __future__ import annotations

import asyncio
import weakref

from wsgateway.broker.base import Broker
from wsgateway.conf import settings

__all__ = ["Broker", "get_broker", "known_broker", "reset_brokers"]

_brokers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Broker] = weakref.WeakKeyDictionary()


def get_broker() -> Broker:
    """Return the running loop's broker, made from the settings at the first call; not opened.

    Raises:
        BrokerMisconfigured: The settings name no usable broker.
    """
    loop = asyncio.get_running_loop()
    broker = _brokers.get(loop)
    if broker is None:
        if settings.BROKER == "memory":
            from wsgateway.broker.memory import MemoryBroker

            broker = MemoryBroker.from_settings(settings)
        else:
            from wsgateway.broker.nats import broker_from_settings

            broker = broker_from_settings(settings)
        _brokers[loop] = broker
    return broker


def known_broker() -> Broker | None:
    """Return the running loop's broker; None if `get_broker` was not called in it."""
    return _brokers.get(asyncio.get_running_loop())


def reset_brokers() -> None:
    """Forget every broker, so that the next call reads the settings again. Does not close them."""
    _brokers.clear()
