"""The gateway in Django's admin."""

from __future__ import annotations

from wsgateway.admin.dead_letters import DeadLetterAdmin
from wsgateway.admin.gateways import GatewayAdmin
from wsgateway.admin.overview import OverviewAdmin
from wsgateway.admin.services import ServiceAdmin
from wsgateway.admin.streams import StreamAdmin

__all__ = ["DeadLetterAdmin", "GatewayAdmin", "OverviewAdmin", "ServiceAdmin", "StreamAdmin"]
