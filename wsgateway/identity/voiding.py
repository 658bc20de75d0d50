"""Tokens that were issued before their user logged out everywhere, or got a new password.

A token cannot be taken back. So the broker keeps, for each user, since when tokens count: as long
as a message to a user is kept, WSGATEWAY_INBOX_MAX_AGE.
"""

from __future__ import annotations

import time
from hashlib import blake2s

from wsgateway.broker.base import Broker
from wsgateway.exceptions import IdentityRefused
from wsgateway.identity.base import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.subjects import GROUP_SERVICE, Inbox

__all__ = ["require_valid_token", "void_tokens"]


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
    if identity.issued_at is None or identity.user_id is None:
        return
    address = _address(identity.user_id)
    log, offset = broker.log(address), 0
    while True:  # one request, unless somebody has logged out a thousand times
        found = await log.read_after(address, offset, limit=1000)
        if any(identity.issued_at <= float(each.payload) for each in found.messages):
            code = CloseCode.NOT_AUTHENTICATED
            raise IdentityRefused(code, "this token is no longer valid; log in again")
        if not found.more:
            return
        offset = found.messages[-1].offset


def _address(user_id: str) -> Inbox:
    """Return where a user's time is. Channels allows no group with a space in its name."""
    digest = blake2s(user_id.encode(), digest_size=16).hexdigest()
    return Inbox(GROUP_SERVICE, f"wsgateway: tokens of {digest}")
