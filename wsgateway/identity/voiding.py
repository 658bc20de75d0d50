"""Tokens that were issued before their user logged out everywhere, or got a new password.

A token cannot be taken back. So the broker keeps, for each user, since when tokens count: as long
as a message to a user is kept, WSGATEWAY_INBOX_MAX_AGE.
"""

from __future__ import annotations

import logging
import math
import time
from hashlib import blake2s

from wsgateway.broker.base import Broker
from wsgateway.exceptions import IdentityRefused
from wsgateway.identity.base import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox

__all__ = ["has_void_token", "require_valid_token", "void_tokens"]

logger = logging.getLogger("wsgateway")


async def void_tokens(broker: Broker, user_id: str, now: float | None = None) -> None:
    """Refuse the tokens that a Django user has got so far.

    Args:
        broker: Keeps it.
        user_id: The user's primary key, as text.
        now: Unix time at which that was decided; None: now.

    Raises:
        BrokerUnavailable: It may not be stored. Call it again.
    """
    since = time.time() if now is None else now
    await broker.publish(_address(user_id), repr(since).encode(), reserved=True)


async def require_valid_token(broker: Broker, identity: Identity) -> None:
    """Refuse an identity whose token is void. Asks only about tokens of Django users.

    Raises:
        IdentityRefused: It was issued too early.
        BrokerUnavailable: Not known now.
    """
    if await has_void_token(broker, identity, {}):
        code = CloseCode.NOT_AUTHENTICATED
        raise IdentityRefused(code, "this token is no longer valid; log in again")


async def has_void_token(broker: Broker, identity: Identity, known: dict[str, float]) -> bool:
    """Say whether an identity's token is void.

    Args:
        broker: Keeps since when tokens count.
        identity: The identity.
        known: What was read just now, by the user's primary key; gets what this reads.

    Raises:
        BrokerUnavailable: Not known now.
    """
    if identity.issued_at is None or identity.user_id is None:
        return False
    if identity.user_id not in known:
        known[identity.user_id] = await _voided_at(broker, identity.user_id)
    return identity.issued_at <= known[identity.user_id]


async def _voided_at(broker: Broker, user_id: str) -> float:
    """Return when a user's tokens were voided last; minus infinity: never, that anybody knows."""
    address, offset, latest = _address(user_id), 0, -math.inf
    while True:  # one request, unless somebody has logged out a thousand times
        found = await broker.log(address).read_after(address, offset, limit=1000)
        for stored in found.messages:
            offset = stored.offset
            try:
                latest = max(latest, float(stored.payload))
            except ValueError:  # not ours
                logger.warning(
                    "skipped message %s: it says no time", offset, extra={"offset": offset}
                )
        if not found.more:
            return latest


def _address(user_id: str) -> Inbox:
    """Return where a user's time is. Channels allows no group with a space in its name."""
    digest = blake2s(user_id.encode(), digest_size=16).hexdigest()
    return Inbox(GROUP_SERVICE, f"wsgateway: tokens of {digest}")
