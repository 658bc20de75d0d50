"""Transactional outbox: messages written in the same database transaction as your data.

Add ``wsgateway.outbox`` to INSTALLED_APPS, migrate, and run ``manage.py runoutbox``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgateway.outbox.writing import enqueue, enqueue_topic

__all__ = ["enqueue", "enqueue_topic"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wsgateway.outbox import writing

    return getattr(writing, name)
