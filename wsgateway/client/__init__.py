"""The Python client of ``wsgateway.v1``: ``async with connect(url) as client``.

Needs the ``websockets`` package (``pip install websockets``), but not Django. Public names are
loaded on first use, so the pure modules can be imported alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgateway.client.connection import Client, connect
    from wsgateway.client.connector import ClientState
    from wsgateway.client.errors import GatewayError
    from wsgateway.client.inbox import Position
    from wsgateway.client.message import Message
    from wsgateway.client.readers import Readers, ReadersChanged
    from wsgateway.client.topic import Topic
    from wsgateway.protocol.backoff import Backoff
    from wsgateway.protocol.v1 import Presence, Subscribed

__all__ = [
    "Backoff",
    "Client",
    "ClientState",
    "GatewayError",
    "Message",
    "Position",
    "Presence",
    "Readers",
    "ReadersChanged",
    "Subscribed",
    "Topic",
    "connect",
]

_MODULES = {
    "Backoff": "wsgateway.protocol.backoff",
    "Client": "wsgateway.client.connection",
    "ClientState": "wsgateway.client.connector",
    "GatewayError": "wsgateway.client.errors",
    "Message": "wsgateway.client.message",
    "Position": "wsgateway.client.inbox",
    "Presence": "wsgateway.protocol.v1",
    "Readers": "wsgateway.client.readers",
    "ReadersChanged": "wsgateway.client.readers",
    "Subscribed": "wsgateway.protocol.v1",
    "Topic": "wsgateway.client.topic",
    "connect": "wsgateway.client.connection",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
