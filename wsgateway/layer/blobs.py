"""Stored messages that are too big for one of NATS: kept in the blob store, behind a claim.

The claim takes the message's place in the order, and is all that a mailbox holds until somebody
receives it. Messages that are not stored are split instead (`wire.split`). Source: the "claim
check" of Hohpe and Woolf, Enterprise Integration Patterns.
"""

from __future__ import annotations

import uuid

from wsgateway.broker.channels import BlobStore
from wsgateway.layer import wire

__all__ = ["fetch", "store"]


async def store(
    blobs: BlobStore, data: bytes, lifetime: float | None = None, identity: bytes | None = None
) -> bytes:
    """Store the envelope *data*; return the envelope that stands for it.

    Args:
        blobs: Where.
        data: Of any size.
        lifetime: As for `BlobStore.store`.
        identity: The same; None: a random one.

    Raises:
        BrokerError: It is not stored, or nobody knows.
    """
    identity = identity or uuid.uuid4().bytes
    return wire.claim(data, identity, await blobs.store(identity, data, lifetime))


async def fetch(blobs: BlobStore, claim: bytes) -> bytes | None:
    """Return the envelope that *claim* stands for; None if it is gone.

    Raises:
        BrokerError: It cannot be read now.
        MalformedMessage: *claim* is not a claim.
    """
    identity, count = wire.claimed(claim)
    return await blobs.fetch(identity, count)
