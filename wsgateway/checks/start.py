"""What an entry point refuses to start with."""

from __future__ import annotations

from wsgateway.checks.base import Check
from wsgateway.checks.identity import check_resolvers
from wsgateway.checks.layers import check_layers
from wsgateway.checks.servers import check_urls
from wsgateway.checks.values import check_values

__all__ = ["START_CHECKS"]

START_CHECKS: list[Check] = [check_values, check_resolvers, check_urls, check_layers]
"""What would make every socket or `group_send` fail: `wsgateway.asgi.application` raises it."""
