"""Database connections around asynchronous handlers, as Django treats them around requests.

Queries of asynchronous code run in one thread, whose connections live on. Django closes those that
failed or are too old before and after each request; a worker does so around each handler. That
costs a change of threads, so it is done only while that thread has a connection: handlers that use
no database pay nothing.

Unlike requests, handlers share the thread. So a connection that works is only closed for its age
when no other handler runs, which may be in the middle of a cursor.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

__all__ = ["UsableConnections", "close_old"]

logger = logging.getLogger("wsgateway.services")

connected: set[int] = set()
"""Threads that have made a connection since they were last found without one."""
_thread: int | None = None
"""The thread of asynchronous code's queries, once it is known."""
_handlers = 0
"""Asynchronous handlers that run now."""


def _on_created(**kwargs: Any) -> None:
    connected.add(threading.get_ident())


connection_created.connect(_on_created, dispatch_uid="wsgateway.database")


def close_old(*, in_use: bool = False) -> None:
    """Close this thread's connections that failed and, unless *in_use*, those that are too old.

    Unlike Django's `close_old_connections` it never raises: what it cannot close fails when used.
    """
    for connection in connections.all(initialized_only=True):
        try:
            if not in_use:
                connection.close_if_unusable_or_obsolete()
            elif connection.errors_occurred:
                _close_if_unusable(connection)
        except Exception:
            logger.warning("cannot close connection %r", connection.alias, exc_info=True)


def _close_if_unusable(connection: BaseDatabaseWrapper) -> None:
    if connection.is_usable():
        connection.errors_occurred = False
    else:
        connection.close()


def _refresh() -> None:
    global _thread
    _thread = threading.get_ident()
    close_old(in_use=_handlers > 1)
    if all(each.connection is None for each in connections.all(initialized_only=True)):
        connected.discard(_thread)


class UsableConnections:
    """Has an asynchronous handler find connections that work, and leave none that is too old.

    ::

        async with UsableConnections():
            await handler(message)
    """

    async def __aenter__(self) -> None:
        global _handlers
        _handlers += 1
        try:
            await _refresh_if_needed()
        except BaseException:
            _handlers -= 1
            raise

    async def __aexit__(self, *error: object) -> None:
        global _handlers
        try:
            await _refresh_if_needed()
        finally:
            _handlers -= 1


async def _refresh_if_needed() -> None:
    if connected and (_thread is None or _thread in connected):
        await sync_to_async(_refresh)()
