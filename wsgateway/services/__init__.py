"""Services in Django: handlers of what clients send. Start with `service`."""

from __future__ import annotations

from wsgateway.declared import discover
from wsgateway.services.errors import Reject, Retry
from wsgateway.services.message import Message
from wsgateway.services.policy import RetryPolicy
from wsgateway.services.registry import JsonHandler, Service, get_service, service

__all__ = [
    "JsonHandler",
    "Message",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Service",
    "discover",
    "get_service",
    "service",
]
