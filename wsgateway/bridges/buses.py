"""Which class connects to which bus."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from django.core.exceptions import ImproperlyConfigured

from wsgateway.bridges.config import PACKAGES, missing_package

if TYPE_CHECKING:
    from wsgateway.bridges.bus import Bus
    from wsgateway.bridges.config import Bridge

__all__ = ["make_bus"]

CLASSES = {"kafka": "KafkaBus", "amqp": "AmqpBus"}


def make_bus(bridge: Bridge) -> Bus:
    """Return the bus of a bridge, not open yet.

    Raises:
        ImproperlyConfigured: Its package is missing.
    """
    if find_spec(PACKAGES[bridge.bus]) is None:
        raise ImproperlyConfigured(missing_package(bridge))
    module = import_module(f"wsgateway.bridges.{bridge.bus}")
    return cast("Bus", getattr(module, CLASSES[bridge.bus])(bridge))
