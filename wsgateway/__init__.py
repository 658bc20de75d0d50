"""Durable, distributed websockets for Django on NATS JetStream.

The names below are loaded when they are used, so that importing a pure module of the package
loads no framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgateway.logging_out import alog_out_everywhere, log_out_everywhere
    from wsgateway.outgoing import Outgoing, OutgoingTopic
    from wsgateway.protocol.group_names import inbox_group
    from wsgateway.publish import (
        asend,
        asend_many,
        asend_topic,
        send,
        send_many,
        send_on_commit,
        send_topic,
        send_topic_on_commit,
    )
    from wsgateway.services import JsonHandler, Message, Reject, Retry, RetryPolicy, service
    from wsgateway.topics.registry import topic

__version__ = "0.1.0"

__all__ = [
    "JsonHandler",
    "Message",
    "Outgoing",
    "OutgoingTopic",
    "Reject",
    "Retry",
    "RetryPolicy",
    "alog_out_everywhere",
    "asend",
    "asend_many",
    "asend_topic",
    "inbox_group",
    "log_out_everywhere",
    "send",
    "send_many",
    "send_on_commit",
    "send_topic",
    "send_topic_on_commit",
    "service",
    "topic",
]

_HOMES = {
    **dict.fromkeys(
        (
            "asend",
            "asend_many",
            "asend_topic",
            "send",
            "send_many",
            "send_on_commit",
            "send_topic",
            "send_topic_on_commit",
        ),
        "wsgateway.publish",
    ),
    **dict.fromkeys(("Outgoing", "OutgoingTopic"), "wsgateway.outgoing"),
    **dict.fromkeys(("alog_out_everywhere", "log_out_everywhere"), "wsgateway.logging_out"),
    "inbox_group": "wsgateway.protocol.group_names",
    "topic": "wsgateway.topics.registry",
}


def __getattr__(name: str) -> Any:
    if name in ("presence", "topics"):  # modules, which are loaded when they are used, too
        return import_module(f"wsgateway.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "wsgateway.services")), name)
