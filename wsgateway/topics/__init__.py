"""Topics: logs that many may read, with rights that Django decides. See `wsgateway.topic`."""

from __future__ import annotations

from wsgateway.topics.registry import Access

__all__ = ["Access"]
