"""Keys of the server API: made once, stored as a hash, recognised, revoked.

A key is ``wsg_<prefix>_<secret>``. The prefix finds the row, and shows in lists and logs. The
secret has 256 random bits, so a plain SHA-256 of it is as hard to invert as any slower hash. It
does not depend on SECRET_KEY, which a project may change.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Iterable

from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.views.decorators.debug import sensitive_variables

from wsgateway.models import ApiKey
from wsgateway.protocol.subjects import encode_token

__all__ = ["ACTIONS", "DEFAULT_RATE", "create", "find", "note_use", "parse", "revoke"]

ACTIONS = {
    "publish": "publish to users and topics",
    "history": "read stored messages",
    "presence": "ask who is online, and who reads a topic",
    "disconnect": "close a user's sockets",
    "revoke": "end or check rights to topics",
    "stats": "read numbers about services and gateways",
}
"""What a key may be allowed to do."""
ANYWHERE = "*"
"""Stands for all services."""
DEFAULT_RATE = 1000.0
PRECISION = dt.timedelta(minutes=1)
"""How often the time of the last use is written, at most."""

_KEY = re.compile(r"wsg_([0-9a-f]{12})_([\w-]{43})", re.ASCII)


@sensitive_variables("secret")
def create(
    name: str, services: Iterable[str], actions: Iterable[str], rate: float = DEFAULT_RATE
) -> tuple[ApiKey, str]:
    """Make a key; return its row and the key itself, which nobody can find out later.

    Args:
        name: Who uses it; no other key that works has the same name.
        services: Where it may act; ``*``: everywhere.
        actions: What it may do, see `ACTIONS`.
        rate: Requests and messages per second, on average; 0: any number.

    Raises:
        ValueError: An argument is not possible, or *name* is taken.
    """
    services, actions = sorted(set(services)), sorted(set(actions))
    _check(name, services, actions, rate)
    prefix, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    made = ApiKey.objects.create(
        name=name,
        prefix=prefix,
        digest=_digest(secret),
        services=services,
        actions=actions,
        rate=rate,
    )
    return made, f"wsg_{prefix}_{secret}"


def _check(name: str, services: list[str], actions: list[str], rate: float) -> None:
    if not name.strip() or len(name) > 100:
        raise ValueError("the name of a key has 1 to 100 characters")
    if ApiKey.objects.filter(name=name, revoked_at=None).exists():
        raise ValueError(f"there is a key named {name!r}; revoke it, or choose another name")
    if not services or not actions:
        raise ValueError("a key needs at least one service and one action")
    for service in services:
        encode_token(service)
    unknown = [action for action in actions if action not in ACTIONS]
    if unknown:
        raise ValueError(f"unknown action {unknown[0]!r}; choose from {', '.join(ACTIONS)}")
    if not 0 <= rate < float("inf"):
        raise ValueError(f"rate {rate!r} is not a number of 0 or more")


@sensitive_variables("key", "found")
def parse(key: str) -> tuple[str, str] | None:
    """Return the prefix and the secret of a key; None if it cannot be one."""
    found = _KEY.fullmatch(key)
    return (found[1], found[2]) if found else None


@sensitive_variables("key", "parts", "secret")
async def find(key: str) -> ApiKey | None:
    """Return the row of a key that works; None if it is wrong or revoked."""
    parts = parse(key)
    if parts is None:
        return None
    prefix, secret = parts
    row = await ApiKey.objects.filter(prefix=prefix, revoked_at=None).afirst()
    if row is None or not constant_time_compare(row.digest, _digest(secret)):
        return None
    return row


@sensitive_variables("secret")
def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def note_use(key: ApiKey) -> None:
    """Write down that *key* is used now, unless that was done within the last minute."""
    now = timezone.now()
    if key.last_used_at is None or now - key.last_used_at >= PRECISION:
        await ApiKey.objects.filter(pk=key.pk).aupdate(last_used_at=now)


def revoke(keys: Iterable[ApiKey]) -> int:
    """Make keys useless for good; return how many still worked."""
    there = ApiKey.objects.filter(pk__in=[key.pk for key in keys], revoked_at=None)
    return there.update(revoked_at=timezone.now())
