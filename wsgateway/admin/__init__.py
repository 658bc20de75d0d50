"""The gateway in Django's admin."""

from __future__ import annotations

from wsgateway.admin.dead_letters import DeadLetterAdmin

__all__ = ["DeadLetterAdmin"]
