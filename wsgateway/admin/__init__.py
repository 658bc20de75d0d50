"""The gateway in Django's admin."""

from __future__ import annotations

from wsgateway.admin.api_keys import ApiKeyAdmin
from wsgateway.admin.dead_letters import DeadLetterAdmin
from wsgateway.admin.gateways import GatewayAdmin
from wsgateway.admin.identities import InboxAdmin
from wsgateway.admin.overview import OverviewAdmin
from wsgateway.admin.services import ServiceAdmin
from wsgateway.admin.streams import StreamAdmin
from wsgateway.admin.users import GatewayUserMixin, take_over_stock_admin

__all__ = [
    "ApiKeyAdmin",
    "DeadLetterAdmin",
    "GatewayAdmin",
    "GatewayUserMixin",
    "InboxAdmin",
    "OverviewAdmin",
    "ServiceAdmin",
    "StreamAdmin",
]

take_over_stock_admin()
