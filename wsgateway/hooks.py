"""Calls what projects override: a method may be synchronous and use the database, or be async."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isawaitable
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction
from channels.db import database_sync_to_async

__all__ = ["call_hook", "call_hook_in_thread"]


async def call_hook(hook: Callable[..., Any], *args: Any) -> Any:
    """Return what *hook* returns; a synchronous one runs in the thread for the database."""
    if iscoroutinefunction(hook):
        return await hook(*args)
    result = await database_sync_to_async(hook)(*args)
    return await result if isawaitable(result) else result


def call_hook_in_thread(hook: Callable[..., Any], *args: Any) -> Any:
    """Return what *hook* returns, for callers that are in a thread already."""
    return async_to_sync(hook)(*args) if iscoroutinefunction(hook) else hook(*args)
