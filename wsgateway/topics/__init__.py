"""Topics: logs that many may read, with rights that Django decides. See `wsgateway.topic`."""

from __future__ import annotations

from wsgateway.topics.history import History, HistoryMessage, ahistory, history
from wsgateway.topics.reading import Readers, areaders, readers
from wsgateway.topics.revoking import arecheck, arevoke, recheck, revoke
from wsgateway.topics.tokens import token

__all__ = [
    "History",
    "HistoryMessage",
    "Readers",
    "ahistory",
    "areaders",
    "arecheck",
    "arevoke",
    "history",
    "readers",
    "recheck",
    "revoke",
    "token",
]
