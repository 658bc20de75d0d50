"""Each test begins with an empty memory broker, as it does with an empty ``mail.outbox``."""

from __future__ import annotations

from wsgateway.broker.isolation import empty_store

__all__ = ["empty_store"]
