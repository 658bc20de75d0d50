"""A broker within one process: the same semantics, nothing survives. For tests and trials."""

from __future__ import annotations

from wsgateway.broker.memory.broker import MemoryBroker
from wsgateway.broker.memory.store import MemoryStore, reset_shared_store, shared_store

__all__ = ["MemoryBroker", "MemoryStore", "reset_shared_store", "shared_store"]
