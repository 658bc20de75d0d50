"""Transactional outbox: messages written in the same database transaction as your data.

Add ``wsgateway.outbox`` to INSTALLED_APPS, migrate, and run ``manage.py runoutbox``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgateway.outbox.writing import enqueue

__all__ = ["enqueue"]


def __getattr__(name: str) -> Any:
    if name != "enqueue":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wsgateway.outbox.writing import enqueue

    return enqueue
