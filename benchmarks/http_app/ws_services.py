"""The topic that every reader reads."""

from __future__ import annotations

from wsgateway import topic
from wsgateway.identity import Identity


@topic("feed")
async def allow(identity: Identity, name: str) -> str:
    """Let everybody read."""
    return "read"
