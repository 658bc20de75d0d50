"""What a request must have before its body is read: a key, a right, patience, a size."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from django.http import HttpRequest
from django.views.decorators.debug import sensitive_variables
from ninja.security.base import AuthBase

from wsgateway.api import keys
from wsgateway.api.problems import Problem
from wsgateway.conf import settings
from wsgateway.models import ApiKey
from wsgateway.protocol.limits import RateLimit

__all__ = [
    "ACTION",
    "BURST",
    "ApiKeyAuth",
    "Rates",
    "charge",
    "key_of",
    "needs",
    "rates",
    "require",
]

ACTION = "x-action"
"""Where the document has an operation's action until it is finished."""

BURST = 10
"""Seconds' worth of requests and messages that a key may use at once."""


class Rates:
    """How often each key was used lately, in this process.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._limits: dict[tuple[int, float], RateLimit] = {}

    def take(self, key: ApiKey, count: int) -> float:
        """Count *count* uses; return the seconds to wait if they are too many, or else 0.

        What is refused does not count. Several at once may exceed the limit, and are waited for
        by the next.
        """
        now = self._clock()
        with self._lock:
            limit = self._limits.get((key.pk, key.rate))
            if limit is None:
                burst = max(1, math.ceil(key.rate * BURST))
                limit = self._limits[key.pk, key.rate] = RateLimit(key.rate, burst, now)
            if limit.take(now):
                limit.take(now, count - 1)
                return 0.0
            limit.give_back()
            return limit.wait


rates = Rates()


class ApiKeyAuth(AuthBase):
    """Finds the key of a request, and refuses what no view needs to see.

    Only the header counts. Cookies do not, so a browser cannot be made to send anything.

    Args:
        action: What the operation does, see `keys.ACTIONS`.
    """

    openapi_type = "http"
    openapi_scheme = "bearer"
    openapi_description = "A key that `manage.py gateway key create` has made."

    def __init__(self, action: str) -> None:
        super().__init__()
        self.action = action

    async def __call__(self, request: HttpRequest) -> ApiKey:
        """Return the key.

        Raises:
            Problem: The request is refused.
        """
        key = await _find(request)
        charge(key)
        await keys.note_use(key)
        if not key.may(self.action):
            raise Problem("forbidden", f"this key may not do {self.action!r}")
        if request.method == "POST":
            _check_body(request)
        return key


@sensitive_variables("token")
async def _find(request: HttpRequest) -> ApiKey:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        text = "send a key: 'Authorization: Bearer wsg_…'"
        raise Problem("unauthorized", text, {"WWW-Authenticate": "Bearer"})
    key = await keys.find(token.strip())
    if key is None:
        text = "no key like this works: it is wrong, or it was revoked"
        raise Problem("unauthorized", text, {"WWW-Authenticate": 'Bearer error="invalid_token"'})
    return key


def charge(key: ApiKey, count: int = 1) -> None:
    """Count *count* uses of *key*; 0 are always allowed.

    Raises:
        Problem: It is used too often.
    """
    wait = rates.take(key, count) if count else 0.0
    if wait:
        raise Problem(
            "too-many-requests",
            f"this key may be used {key.rate:g} times per second, on average",
            {"Retry-After": str(math.ceil(wait))},
        )


def _check_body(request: HttpRequest) -> None:
    """Refuse a body that is not worth reading.

    Raises:
        Problem: It is too large, or something else than JSON.
    """
    length = request.META.get("CONTENT_LENGTH") or ""
    if not length.isdecimal():
        raise Problem("length-required", "send a body, and its length in Content-Length")
    limit = settings.max_body
    if limit is not None and int(length) > limit:
        text = f"body of {length} bytes exceeds DATA_UPLOAD_MAX_MEMORY_SIZE ({limit} bytes)"
        raise Problem("too-large", text)
    if request.content_type != "application/json":
        text = f"Content-Type is {request.content_type or 'missing'!r}, not 'application/json'"
        raise Problem("not-json", text)


def needs(action: str) -> dict[str, Any]:
    """Return the options of an operation that a key may call if it may do *action*."""
    return {"auth": ApiKeyAuth(action), "openapi_extra": {ACTION: action}}


def key_of(request: HttpRequest) -> ApiKey:
    """Return the key that `ApiKeyAuth` has found."""
    return cast(ApiKey, request.auth)  # type: ignore[attr-defined]


def require(request: HttpRequest, action: str, service: str) -> ApiKey:
    """Return the request's key, if it may do *action* in a service.

    Raises:
        Problem: It may not.
    """
    key = key_of(request)
    if not key.may(action, service):
        text = f"this key may not do {action!r} in service {service!r}"
        raise Problem("forbidden", text)
    return key
