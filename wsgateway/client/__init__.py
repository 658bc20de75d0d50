"""The Python client of ``wsgateway.v1``: ``async with connect(url) as client``.

Needs the ``websockets`` package (``pip install websockets``), and no Django. The public
names are loaded when they are used, so that the pure modules below can be imported alone.
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
    from wsgateway.protocol.backoff import Backoff

__all__ = ["Backoff", "Client", "ClientState", "GatewayError", "Message", "Position", "connect"]

_HOMES = {
    "Backoff": "wsgateway.protocol.backoff",
    "Client": "wsgateway.client.connection",
    "ClientState": "wsgateway.client.connector",
    "GatewayError": "wsgateway.client.errors",
    "Message": "wsgateway.client.message",
    "Position": "wsgateway.client.inbox",
    "connect": "wsgateway.client.connection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
