"""Former home of the layer in memory; goes with the next release."""

from __future__ import annotations

from wsgateway.layer.core import NatsChannelLayer

__all__ = ["MemoryChannelLayer"]

MemoryChannelLayer = NatsChannelLayer
"""With ``PUBSUB_BROKER = "memory"``, `NatsChannelLayer` itself is in memory."""
