"""Topics that every client may read: durable ones, and ephemeral ones."""

from __future__ import annotations

from wsgateway import topic
from wsgateway.identity import Identity


@topic("durable")
@topic("ephemeral", durable=False)
async def allow(identity: Identity, name: str) -> str:
    """Let everybody read."""
    return "read"
