"""The channel layer; ``"BACKEND": "wsgateway.layer.NatsChannelLayer"``."""

from __future__ import annotations

from wsgateway.layer.core import NatsChannelLayer

__all__ = ["NatsChannelLayer"]
