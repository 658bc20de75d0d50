"""Topics: logs that many may read, with rights that Django decides. See `wsgateway.topic`."""

from __future__ import annotations

from wsgateway.topics.revoking import arecheck, arevoke, recheck, revoke
from wsgateway.topics.tokens import token

__all__ = ["arecheck", "arevoke", "recheck", "revoke", "token"]
