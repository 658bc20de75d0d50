"""Asks a webhook whose socket it is: a backend in any language decides about a handshake."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

from django.core.exceptions import ImproperlyConfigured

from wsgateway.conf import settings
from wsgateway.exceptions import IdentityRefused, in_one_line
from wsgateway.handshake import cookie, header, parameter, route
from wsgateway.identity.base import DEFAULT_DEVICE, Identity, Scope, shown
from wsgateway.identity.paths import require_path, service_in
from wsgateway.identity.tokens import sent_token
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.strict_json import loads
from wsgateway.supervision import share
from wsgateway.webhooks.addresses import AddressRefused
from wsgateway.webhooks.config import Endpoint, identity_webhook_of
from wsgateway.webhooks.sender import PostFailed, Sender
from wsgateway.webhooks.verdicts import Answer

__all__ = ["WebhookIdentity"]

AT_ONCE = 64
"""Requests of one process at the same time."""
MAX_ANSWER = 10_000
"""Bytes of an answer."""
MAX_KEPT = 10_000
"""Answers that one process keeps."""
MAX_REASON = 100
"""Characters of a refusal's reason; a close frame has little room."""
REFUSALS: dict[int, CloseCode] = {
    HTTPStatus.UNAUTHORIZED: CloseCode.NOT_AUTHENTICATED,
    HTTPStatus.FORBIDDEN: CloseCode.FORBIDDEN,
}


@dataclass(frozen=True)
class _Login:
    """What the webhook says of a handshake."""

    user: str
    service: str | None
    device: str | None
    expires_at: float | None


@dataclass(frozen=True)
class _Refused:
    """That the handshake may not connect, and why."""

    code: CloseCode
    reason: str


_Found = _Login | _Refused | None
"""None: the next resolver may know."""


class _Loop:
    """What belongs to one event loop: connections, and the questions that wait for an answer."""

    def __init__(self) -> None:
        self.senders: dict[Endpoint, Sender] = {}
        self.asking: dict[bytes, asyncio.Task[_Found]] = {}
        self.turns = asyncio.Semaphore(AT_ONCE)

    def sender(self, endpoint: Endpoint) -> Sender:
        """Return what posts to *endpoint*."""
        if endpoint not in self.senders:
            self.senders[endpoint] = Sender(endpoint, MAX_ANSWER)
        return self.senders[endpoint]


class WebhookIdentity:
    """What the endpoint in ``WSGATEWAY_IDENTITY_WEBHOOK`` answers about a handshake.

    It gets the headers and cookies that the setting names. A handshake with none of them is left to
    the next resolver. Equal handshakes share a request, and its answer for a few seconds. Without
    an answer that can be used, nobody is let in.
    """

    reads_tokens = True

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[float, _Found]] = OrderedDict()  # until when, what
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()

    async def resolve(self, scope: Scope) -> Identity | None:
        """See `Resolver`.

        Raises:
            ImproperlyConfigured: The setting is empty.
        """
        if not settings.IDENTITY_WEBHOOK:
            raise ImproperlyConfigured("WSGATEWAY_IDENTITY_WEBHOOK is empty; set url and secret")
        config = identity_webhook_of(settings.IDENTITY_WEBHOOK)
        headers = _chosen_headers(scope, config.headers)
        cookies = _chosen_cookies(scope, config.cookies)
        if not headers and not cookies:
            return None
        named = route(scope)
        device = parameter(scope, "device") or DEFAULT_DEVICE
        about = {
            "type": "handshake",
            "service": named.get("service"),
            "user": named.get("user"),
            "device": device,
            "headers": headers,
            "cookies": cookies,
        }
        found = await self._find(json.dumps(about).encode(), config.endpoint, config.cache)
        if found is None:
            return None
        if isinstance(found, _Refused):
            raise IdentityRefused(found.code, found.reason, "the webhook for identities says so")
        return require_path(
            scope,
            Identity(
                found.service or service_in(scope),
                found.user,
                found.device or device,
                expires_at=found.expires_at,
            ),
        )

    async def _find(self, body: bytes, endpoint: Endpoint, keep: float) -> _Found:
        """Return what is kept, what is being asked, or what the endpoint answers now."""
        key = hashlib.sha256(endpoint.url.encode() + b" " + body).digest()
        until, found = self._kept.get(key, (0.0, None))
        if time.monotonic() < until:
            return found
        loop = self._loops.setdefault(asyncio.get_running_loop(), _Loop())
        task = loop.asking.get(key)
        if task is None:
            asking = self._ask(loop, key, body, endpoint, keep)
            task = loop.asking[key] = share(asking, "wsgateway-ask")
        return await asyncio.shield(task)  # the others wait for it, too

    async def _ask(
        self, loop: _Loop, key: bytes, body: bytes, endpoint: Endpoint, keep: float
    ) -> _Found:
        try:
            async with _turn(loop.turns, endpoint):
                answer = await loop.sender(endpoint).post(f"auth_{uuid.uuid4().hex}", body)
        except (PostFailed, AddressRefused) as exc:
            raise _failed(str(exc)) from exc
        finally:
            del loop.asking[key]
        try:
            found = _read(answer)
        except (ValueError, OverflowError) as exc:
            raise _failed(f"{endpoint.origin}: it answered {answer.status}, {exc}") from exc
        if isinstance(found, _Login) and found.expires_at is not None:
            keep = min(keep, found.expires_at - time.time())
        self._kept[key] = time.monotonic() + keep, found
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return found


@asynccontextmanager
async def _turn(turns: asyncio.Semaphore, endpoint: Endpoint) -> AsyncIterator[None]:
    """Wait for a turn, no longer than for an answer."""
    try:
        async with asyncio.timeout(endpoint.timeout):
            await turns.acquire()
    except TimeoutError as exc:
        raise _failed(f"{endpoint.origin} has too many handshakes to answer") from exc
    try:
        yield
    finally:
        turns.release()


def _chosen_headers(scope: Scope, names: tuple[str, ...]) -> dict[str, str]:
    """Return these headers, as far as the client sent them.

    A token from the list of subprotocols or the query counts as an ``Authorization`` header.
    """
    found = {}
    for name in names:
        if values := header(scope, name.encode()):
            found[name] = b", ".join(values).decode("latin-1")
    if "authorization" in names and (token := sent_token(scope)):
        found["authorization"] = f"Bearer {token}"
    return found


def _chosen_cookies(scope: Scope, names: tuple[str, ...]) -> dict[str, str]:
    """Return these cookies, as far as the client sent them as text."""
    found = ((name, cookie(scope, name)) for name in names)
    return {name: value for name, value in found if value and value.isprintable()}


def _failed(cause: str) -> IdentityRefused:
    """Return the refusal of a client that may try again: nobody knows whose socket it is."""
    code = CloseCode.INTERNAL_ERROR
    cure = "check WSGATEWAY_IDENTITY_WEBHOOK; the client tries again"
    return IdentityRefused(code, code.reason, cure, cause)


def _read(answer: Answer) -> _Found:
    """Return what an answer means.

    Raises:
        ValueError: Nothing; why.
    """
    if code := REFUSALS.get(answer.status):
        return _Refused(code, _reason(answer) or code.reason)
    if answer.status == HTTPStatus.NO_CONTENT:
        return None
    if not 200 <= answer.status < 300:
        raise ValueError("which says nothing about the handshake")
    if answer.problem:
        raise ValueError(f"but the body {answer.problem}")
    try:
        fields = loads(answer.body)
    except (ValueError, RecursionError) as exc:
        raise ValueError("but the body is not JSON") from exc
    return _login(fields)


def _login(fields: object) -> _Login:
    if not isinstance(fields, Mapping) or not _is_name(fields.get("user")):
        raise ValueError('but the body is not an object with a "user"')
    service, device = fields.get("service"), fields.get("device")
    for value in (service, device):
        if value is not None and not _is_name(value):
            raise ValueError(f"but {shown(value)} is not a name")
    return _Login(fields["user"], service, device, _expiry(fields, time.time()))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _expiry(fields: Mapping[str, Any], now: float) -> float | None:
    seconds = fields.get("expires_in")
    if seconds is None:
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds > 0:
        text = f'but "expires_in" is {shown(seconds)}, which is not a number of seconds above 0'
        raise ValueError(text)
    return now + seconds


def _reason(answer: Answer) -> str:
    """Return the ``detail`` of a problem document, or else its ``title``, in one short line."""
    try:
        problem = loads(answer.body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(problem, Mapping):
        return ""
    found = (problem.get(name) for name in ("detail", "title"))
    texts = (in_one_line(text)[:MAX_REASON] for text in found if isinstance(text, str))
    return next(filter(None, texts), "")
