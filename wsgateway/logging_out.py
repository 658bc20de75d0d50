"""Logs a Django user out everywhere: every session, every token, every socket."""

from __future__ import annotations

from functools import partial
from typing import Any

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.hooks import call_hook
from wsgateway.identity.voiding import void_tokens
from wsgateway.logins import can_end_sessions, end_sessions, user_id_of
from wsgateway.receivers import announce_end

__all__ = ["alog_out_everywhere", "log_out_everywhere"]


def log_out_everywhere(user: Any) -> None:
    """End a user's sessions, void their tokens, and close their sockets on every gateway.

    The sockets close with 4501 within a second of the commit. Sessions are ended if they are in the
    database; that reads every session there is. Tokens are those of `make_token` for a Django user,
    and JSON web tokens that `JwtUserIdentity` reads.

    Args:
        user: A Django user.

    Raises:
        TypeError: *user* is something else.
        BrokerUnavailable: Sessions have ended, but tokens may still be valid. Call it again.
    """
    user_id = _require_user(user)
    try:
        runtime.call_sync(partial(_void, user_id=user_id), name="log_out_everywhere")
    finally:
        _end(user)


async def alog_out_everywhere(user: Any) -> None:
    """Do what `log_out_everywhere` does, from asynchronous code."""
    user_id = _require_user(user)
    try:
        await runtime.call(partial(_void, user_id=user_id))
    finally:
        await call_hook(_end, user)


async def _void(broker: Broker, user_id: str) -> None:
    await void_tokens(broker, user_id)


def _end(user: Any) -> None:
    if can_end_sessions():
        end_sessions(user)
    announce_end(user)


def _require_user(user: Any) -> str:
    user_id = user_id_of(user)
    if user_id is None:
        raise TypeError(f"user is {type(user).__name__}; give a Django user that is saved")
    return user_id
