"""Who may watch whom in the tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

CALLS: list[tuple[str, str, str]] = []


def may_watch(identity: Any, service: str, user: str) -> bool:
    """Allow everybody to watch those whose names begin with ``u`` or ``bob``."""
    CALLS.append((identity.user, service, user))
    if user == "broken":
        raise ZeroDivisionError
    blocked = os.environ.get("BLOCKED")
    if blocked and Path(blocked).exists():
        return Path(blocked).read_text() not in (identity.user, user)
    return user.startswith(("u", "bob"))


async def may_watch_async(identity: Any, service: str, user: str) -> bool:
    """Do the same in a coroutine."""
    return may_watch(identity, service, user)
