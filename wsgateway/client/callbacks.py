"""Functions of the application."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["call", "fetch"]

logger = logging.getLogger("wsgateway.client")

T = TypeVar("T")


def call(callback: Callable[[T], object] | None, value: T) -> None:
    """Call the user's function, and log what it raises."""
    if callback is None:
        return
    try:
        callback(value)
    except Exception:
        logger.exception("a callback of the client failed")


async def fetch(source: Callable[..., str | Awaitable[str]], *arguments: str) -> str:
    """Return what the user's function returns, be it sync or async."""
    result = source(*arguments)
    return await result if inspect.isawaitable(result) else result
