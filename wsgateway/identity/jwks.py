"""The keys that an identity provider publishes: fetched in a thread, kept, and fetched again.

A provider that rotates its keys begins to name a new ``kid``. A token with an unknown one makes the
gateway fetch again, but never more often than every `PAUSE` seconds, whatever clients send.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from http.client import HTTPException
from typing import Any

from wsgateway.conf import settings
from wsgateway.exceptions import reason_of
from wsgateway.identity.jwt_keys import Key, keys_of_jwks

__all__ = ["KeySet", "KeyUnknown", "KeysUnavailable", "key_set"]

logger = logging.getLogger("wsgateway")

PAUSE = 10.0
"""Seconds between two requests, at least."""
TIMEOUT = 5.0
"""Seconds that one may take."""
MAX_SIZE = 512 * 1024
"""Bytes of an answer, at most. Those of large providers have 2 to 20 KB."""
MAX_STALE = 24 * 3600.0
"""Seconds for which keys that cannot be fetched again stay in use."""


class KeysUnavailable(Exception):
    """The keys are not known now; it may be different in a moment."""


class KeyUnknown(Exception):
    """No key has this id, and it is too early to look for a new one. Any client can cause it."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key set that is elsewhere, perhaps without TLS, is not the one that was configured."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow nothing: urllib raises HTTPError for the status itself."""


_open = urllib.request.build_opener(_NoRedirects).open


def fetch(url: str) -> bytes:
    """Return what is at *url*; blocks.

    Raises:
        OSError: There is no answer in time, or it is not 200.
        ValueError: It is too large.
    """
    deadline = time.monotonic() + TIMEOUT
    headers = {"Accept": "application/json", "User-Agent": "wsgateway"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - a check wants http
    payload = b""
    with _open(request, timeout=TIMEOUT) as answer:
        while chunk := answer.read1(65536):
            payload += chunk
            if len(payload) > MAX_SIZE:
                raise ValueError(f"the answer has more than {MAX_SIZE} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the answer took more than {TIMEOUT:g} seconds")
    return payload


class KeySet:
    """The keys at one URL. Any event loop of the process may ask.

    Args:
        url: Where they are.
        get: Returns what is there; blocks.
        clock: Returns seconds.
    """

    def __init__(
        self,
        url: str,
        get: Callable[[str], bytes] = fetch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._get = get
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched = 0.0  # when that was
        self._tried: float | None = None  # when it was tried last
        self._failure = ""  # why that failed; empty if it did not
        # One thread: of all who wait for the same keys, the first one fetches them
        self._thread = ThreadPoolExecutor(1, "wsgateway-jwks")

    async def find(self, id: str | None) -> list[Key]:
        """Return the keys that a token's ``kid`` names; all of them if it names none.

        Raises:
            KeysUnavailable: No keys can be had now.
            KeyUnknown: Whether there is a new one cannot be found out now.
        """
        asked = self._clock()
        if self._may_be_outdated(id) and self._may_fetch():
            await asyncio.get_running_loop().run_in_executor(self._thread, self._refresh, id)
        if not self._keys or self._clock() - self._fetched > MAX_STALE:
            raise KeysUnavailable(f"cannot fetch {self._url}: {self._failure or 'no usable keys'}")
        found = [key for key in self._keys if id is None or key.id in (None, id)]
        if not found and self._fetched < asked:  # the next request may bring it
            why = self._failure or "the last request was a moment ago"
            raise KeyUnknown(f"cannot look for a new key at {self._url} now: {why}")
        return found

    def _may_be_outdated(self, id: str | None) -> bool:
        if not self._keys or self._clock() - self._fetched >= settings.JWT_JWKS_MAX_AGE:
            return True
        return id is not None and all(key.id not in (None, id) for key in self._keys)

    def _may_fetch(self) -> bool:
        return self._tried is None or self._clock() - self._tried >= PAUSE

    def _refresh(self, id: str | None) -> None:
        """Fetch, unless another caller has done it while this one waited."""
        if not (self._may_be_outdated(id) and self._may_fetch()):
            return
        try:
            keys = keys_of_jwks(self._get(self._url))
            self._failure = "" if keys else "it holds no keys for signatures"
        except (OSError, HTTPException, ValueError) as exc:
            keys, self._failure = [], reason_of(exc)
        self._tried = self._clock()
        if keys:
            self._keys, self._fetched = keys, self._tried
        elif self._failure:
            logger.warning("cannot fetch the keys at %s: %s", self._url, self._failure)


@lru_cache(maxsize=16)
def key_set(url: str) -> KeySet:
    """Return the process's keys of *url*."""
    return KeySet(url)
