"""The layers of this process, and what forks, tests and their settings do to them."""

from __future__ import annotations

import uuid
import weakref
from typing import TYPE_CHECKING, Any

from channels.layers import channel_layers
from django.core.signals import setting_changed

from wsgateway.broker.isolation import resets
from wsgateway.broker.runtime import on_fork
from wsgateway.layer.options import ConfiguredLayer

if TYPE_CHECKING:
    from wsgateway.layer.core import NatsChannelLayer

__all__ = ["layers"]

layers: weakref.WeakSet[NatsChannelLayer] = weakref.WeakSet()
"""All there are."""
CHOOSING = {"PUBSUB_BROKER", "NATS_BROKER_URL", "WSGATEWAY_PREFIX"}
"""Settings that decide what a layer works with."""


def _follow_settings(*, setting: str, **kwargs: Any) -> None:
    if setting in CHOOSING:  # the next `get_channel_layer` makes another one
        for alias, layer in list(channel_layers.backends.items()):
            if isinstance(layer, ConfiguredLayer):
                del channel_layers.backends[alias]
    elif setting == "WSGATEWAY_DURABLE_GROUPS":
        for each in list(layers):
            each.directory.clear()


def _begin_in_child() -> None:
    for layer in list(layers):
        layer.restart(uuid.uuid4().hex)


def _empty_memory() -> None:
    for layer in list(layers):
        if layer.connections.are_in_memory:
            layer.local.leave()
            layer.restart(layer.client_prefix)


setting_changed.connect(_follow_settings)
on_fork(_begin_in_child)
resets.append(_empty_memory)
