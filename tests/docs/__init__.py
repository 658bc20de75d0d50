"""The documents are true."""

from __future__ import annotations
