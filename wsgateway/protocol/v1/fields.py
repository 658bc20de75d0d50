"""The fields of a frame of ``wsgateway.v1``: read strictly, written compactly."""

from __future__ import annotations

import binascii
import json
import re
from typing import Any, NoReturn

from wsgateway.protocol.frames import Frame
from wsgateway.protocol.strict_json import NotStrict, refuse_constant, unique
from wsgateway.protocol.v1.messages import ErrorCode, ProtocolError

SUBPROTOCOL = "wsgateway.v1"
MAX_OFFSET = 2**53 - 1
"""Largest integer that JavaScript holds exactly."""

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"
)
_TRACESTATE = re.compile(r"[ -~]{1,512}\Z")

dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder(object_pairs_hook=unique, parse_constant=refuse_constant).decode


def bad(message: str, id: str | None = None) -> NoReturn:
    """Refuse a frame; *id* is its message's, if it could be read."""
    raise ProtocolError(ErrorCode.BAD_REQUEST, message, id)


def fatal(message: str) -> ProtocolError:
    """Return the error for an end that speaks something else."""
    return ProtocolError(ErrorCode.BAD_REQUEST, message, fatal=True)


def load(text: str | bytes) -> dict[str, Any]:
    """Return a frame's fields; ``type`` is a string.

    Raises:
        ProtocolError: Fatal for a binary frame.
    """
    if not isinstance(text, str):
        raise fatal(f"binary frames are not part of {SUBPROTOCOL}; send bytes as base64")
    try:
        fields = _decode(text)
    except NotStrict as exc:
        bad(f"the frame is refused: {exc}")
    except (ValueError, RecursionError):
        # ValueError: no JSON, an integer of thousands of digits.
        bad("the frame is not a JSON object, or too deep")
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        bad('the frame is not a JSON object with a string "type"')
    return fields


def string(fields: dict[str, Any], name: str) -> str:
    """Return the field *name*, which must be a string."""
    value = fields.get(name)
    if not isinstance(value, str):
        bad(f"{name} must be a string")
    return value


def integer(fields: dict[str, Any], name: str, id: str | None = None) -> int:
    """Return the field *name*, which must be an integer from 0 to `MAX_OFFSET`; *id*: see `bad`."""
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= MAX_OFFSET:
        bad(f"{name} must be an integer from 0 to {MAX_OFFSET}", id)
    return value


def trace_of(fields: dict[str, Any], id: str | None) -> dict[str, str] | None:
    """Return the trace context as headers; None if it is not one of W3C Trace Context.

    A client whose tracing is broken must still be able to send. Source: W3C Trace Context, 3.2.
    """
    parent, state = fields.get("traceparent", ""), fields.get("tracestate", "")
    if not isinstance(parent, str) or not isinstance(state, str):
        bad("traceparent and tracestate must be strings", id)
    if not _TRACEPARENT.match(parent):
        return None
    found = {"traceparent": parent}
    if _TRACESTATE.match(state):
        found["tracestate"] = state
    return found


def frame_of(fields: dict[str, Any], id: str | None) -> Frame:
    """Return the payload: *data* (text, or any other JSON value as JSON) or *bytes*."""
    if ("data" in fields) == ("bytes" in fields):
        bad("give either data or bytes", id)
    try:
        if "bytes" in fields:
            return Frame(_base64(fields["bytes"]), False)
        data = fields["data"]
        return Frame((data if isinstance(data, str) else dumps(data)).encode(), True)
    except (ValueError, RecursionError):
        # ValueError: half a surrogate pair, a number like 1e999, no base64.
        bad("data or bytes cannot be encoded", id)


def _base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return binascii.a2b_base64(value.encode("ascii"), strict_mode=True)
