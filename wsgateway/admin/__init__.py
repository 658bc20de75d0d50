"""The gateway in Django's admin."""

from __future__ import annotations

from wsgateway.admin.dead_letters import DeadLetterAdmin
from wsgateway.admin.gateways import GatewayAdmin
from wsgateway.admin.streams import StreamAdmin

__all__ = ["DeadLetterAdmin", "GatewayAdmin", "StreamAdmin"]
