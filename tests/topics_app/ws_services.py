"""Topics for clients of the tests: ``room`` and ``cursor`` to write to, others to read."""

from __future__ import annotations

from wsgateway import Message, service, topic
from wsgateway.identity import Identity


@service("orders")
async def orders(message: Message) -> None:
    """Take what clients send."""


@service("faults")
async def faults(message: Message) -> None:
    """Take what clients send."""


@topic("room", direct=True)
def room(identity: Identity, name: str) -> str | None:
    """Let everybody write, but nobody to the room ``secret``."""
    return None if name == "secret" else "write"


@topic("board")
def board(identity: Identity, name: str) -> str:
    """Let everybody read."""
    return "read"


@topic("lounge", presence=True)
def lounge(identity: Identity, name: str) -> str:
    """Let everybody read, and see who does."""
    return "read"


@topic("cursor", durable=False, direct=True)
def cursor(identity: Identity, name: str) -> str:
    """Let everybody write."""
    return "write"
