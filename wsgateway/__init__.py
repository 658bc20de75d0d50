"""Durable, distributed websockets for Django on NATS JetStream."""

from __future__ import annotations

__all__: list[str] = []
