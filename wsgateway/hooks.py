"""Finds and calls what projects override: methods may be synchronous and use the database."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync, iscoroutinefunction
from channels.db import database_sync_to_async
from django.utils.module_loading import import_string

from wsgateway.database import UsableConnections

if TYPE_CHECKING:
    from wsgateway.identity import Resolver

__all__ = ["call_hook", "call_hook_in_thread", "get_resolver"]


@lru_cache(maxsize=64)
def get_resolver(path: str) -> Resolver:
    """Return the resolver with this dotted path; there is one per process."""
    resolver: Resolver = import_string(path)()
    return resolver


async def call_hook(hook: Callable[..., Any], *args: Any) -> Any:
    """Return what *hook* returns; a synchronous one runs in the thread for the database.

    Either finds database connections that work.
    """
    if iscoroutinefunction(hook):
        async with UsableConnections():
            return await hook(*args)
    result = await database_sync_to_async(_call)(hook, *args)
    return await result if isawaitable(result) else result


def _call(hook: Callable[..., Any], *args: Any) -> Any:
    """Call *hook* in a thread. A StopIteration cannot pass through a future: nobody would hear."""
    try:
        return hook(*args)
    except StopIteration as exc:
        raise RuntimeError(f"{hook!r} raised StopIteration") from exc


def call_hook_in_thread(hook: Callable[..., Any], *args: Any) -> Any:
    """Return what *hook* returns, for callers that already run in a thread."""
    return async_to_sync(hook)(*args) if iscoroutinefunction(hook) else hook(*args)
