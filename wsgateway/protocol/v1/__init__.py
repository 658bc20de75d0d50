"""The subprotocol ``wsgateway.v1``: frames to objects and back. Pure.

Both ends use it: the gateway parses with `parse_client`, the Python client with `parse_server`.
A parser returns, or raises `ProtocolError`, whatever it is fed. ``docs/protocol.md`` describes
each message; ``protocol.schema.json`` beside the JavaScript client is checked against this package.
"""

from __future__ import annotations

from wsgateway.protocol.v1.client import encode_client_ack, encode_client_message, parse_server
from wsgateway.protocol.v1.fields import MAX_OFFSET, SUBPROTOCOL
from wsgateway.protocol.v1.gateway import (
    MAX_EPOCH,
    SUBPROTOCOLS,
    choose_subprotocol,
    encode_ack,
    encode_closing,
    encode_error,
    encode_message,
    encode_welcome,
    largest_frame,
    largest_message,
    parse_client,
    parse_resume,
)
from wsgateway.protocol.v1.messages import (
    MAX_AFTER,
    MAX_PING,
    Accepted,
    Ack,
    ClientMessage,
    Closing,
    ErrorCode,
    Ping,
    Pong,
    ProtocolError,
    Reason,
    Refused,
    Resume,
    ServerMessage,
    Unknown,
    Welcome,
    encode_ping,
    encode_pong,
    valid_id,
)

__all__ = [
    "MAX_AFTER",
    "MAX_EPOCH",
    "MAX_OFFSET",
    "MAX_PING",
    "SUBPROTOCOL",
    "SUBPROTOCOLS",
    "Accepted",
    "Ack",
    "ClientMessage",
    "Closing",
    "ErrorCode",
    "Ping",
    "Pong",
    "ProtocolError",
    "Reason",
    "Refused",
    "Resume",
    "ServerMessage",
    "Unknown",
    "Welcome",
    "choose_subprotocol",
    "encode_ack",
    "encode_client_ack",
    "encode_client_message",
    "encode_closing",
    "encode_error",
    "encode_message",
    "encode_ping",
    "encode_pong",
    "encode_welcome",
    "largest_frame",
    "largest_message",
    "parse_client",
    "parse_resume",
    "parse_server",
    "valid_id",
]
