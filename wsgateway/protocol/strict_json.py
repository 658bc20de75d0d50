"""JSON that every parser reads alike (RFC 7493), which Python's own takes and writes too much for.

NaN, infinities and numbers beyond a double, a name that is given twice, half a surrogate pair.
Pure.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

__all__ = ["NotStrict", "loads", "refuse_constant", "unique"]

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NotStrict(ValueError):
    """Python would take it, but other parsers would not, or would read it otherwise."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's members. A decoder's ``object_pairs_hook``.

    Raises:
        NotStrict: A name is given twice.
    """
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise NotStrict("a name is given twice")
    return fields


def refuse_constant(name: str) -> NoReturn:
    """Refuse ``NaN`` and its like. A decoder's ``parse_constant``."""
    raise NotStrict("NaN and Infinity are not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


_decode = json.JSONDecoder(
    object_pairs_hook=unique, parse_constant=refuse_constant, parse_float=_finite
).decode


def loads(data: str | bytes) -> Any:
    """Return what *data* means.

    Raises:
        ValueError: It is not JSON, or not JSON that everybody reads alike.
        RecursionError: It is too deep.
    """
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    value = _decode(text)
    if _ESCAPED_SURROGATE.search(text):  # in pairs, as a rule
        json.dumps(value, ensure_ascii=False).encode()
    return value
