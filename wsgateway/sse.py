"""Server-sent events: the ASGI application that answers ``GET /sse/<service>/``.

It stands beside Django's. A view never sees the server's transport, so it could not tell that a
reader is slow.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponse

from wsgateway.exceptions import IdentityRefused
from wsgateway.gateway import daphne_responses, uvicorn_responses
from wsgateway.gateway.opening import open_session
from wsgateway.gateway.origins import cors_headers
from wsgateway.gateway.refusals import MAX_PATH
from wsgateway.gateway.responses import Headers, Response, respond
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket, SocketClosed
from wsgateway.gateway.transport import server_send
from wsgateway.handshake import header, parameter
from wsgateway.identity import Identity
from wsgateway.protocol.codes import CloseCode
from wsgateway.protocol.endpoint import Subscribe
from wsgateway.protocol.event_ids import mark
from wsgateway.protocol.sse import Request, SseEndpoint, encode_problem, parse_request
from wsgateway.protocol.v1 import ProtocolError, Resume
from wsgateway.topics.tokens import topic_of

__all__ = ["needs_asgi", "serve_events", "unknown_path"]

ALLOWED: Headers = ((b"allow", b"GET, OPTIONS"),)
PREFLIGHT: Headers = (
    (b"access-control-allow-methods", b"GET"),
    (b"access-control-allow-headers", b"authorization, cache-control, last-event-id"),
    (b"access-control-max-age", b"600"),
)
"""What a page may send from another origin."""
MAX_REQUEST = 64 * 1024
"""Bytes of a URL, and of all headers. Uvicorn on httptools has no limit of its own, and to look for
a parameter in megabytes takes seconds in which nobody else is served."""
BLIND = (
    "daphne cannot bound what a slow reader costs over HTTP/2; let a proxy speak HTTP/2 to "
    "browsers and HTTP/1.1 to daphne, uninstall Twisted's http2 extra, or use uvicorn"
)


async def serve_events(scope: Any, receive: Any, send: Any) -> None:
    """Answer one request, until either side ends it."""
    if (status := _too_large(scope)) is not None:
        await respond(send, status, (), f"more than {MAX_REQUEST} bytes; send less")
        return
    cors = cors_headers(scope)
    if scope["method"] == "OPTIONS":
        await respond(send, HTTPStatus.NO_CONTENT, [*ALLOWED, *PREFLIGHT, *cors])
        return
    if scope["method"] != "GET":
        reason = "server-sent events are read with GET"
        await respond(send, HTTPStatus.METHOD_NOT_ALLOWED, [*ALLOWED, *cors], reason)
        return
    if daphne_responses.is_blind(server_send(scope, send)):
        await respond(send, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, cors, BLIND)
        return
    await _Stream(scope, send, cors).serve(receive)


def _too_large(scope: Any) -> HTTPStatus | None:
    """Return the status for a request that is not worth reading; None if it is."""
    if len(scope["path"]) + len(scope.get("query_string", b"")) > MAX_REQUEST:
        return HTTPStatus.REQUEST_URI_TOO_LONG
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_REQUEST:
        return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return None


async def unknown_path(scope: Any, receive: Any, send: Any) -> None:
    """Answer a path without a route."""
    reason = "no such path; read events at /<service>/ or /<service>/<user>/"
    if not scope["path"].endswith("/"):
        reason += ", with the slash at its end"
    await respond(send, HTTPStatus.NOT_FOUND, cors_headers(scope), reason)


def needs_asgi(request: HttpRequest, path: str = "") -> HttpResponse:
    """Say why there are no server-sent events. It is a view: something else serves this site."""
    status = HTTPStatus.NOT_IMPLEMENTED
    reason = (
        "server-sent events need an ASGI server, such as daphne or uvicorn, and "
        "wsgateway.asgi.application() in asgi.py; this request came through something else"
    )
    body = encode_problem(status, reason)
    return HttpResponse(body, status=status, content_type="application/problem+json")


class _Stream:
    """One response.

    Args:
        scope: The request.
        send: What the application was given.
        headers: What every response says.
    """

    def __init__(self, scope: Any, send: Any, headers: Headers) -> None:
        self._scope = scope
        servers = server_send(scope, send)
        self._response = response = (
            daphne_responses.response(servers, send, headers)
            or uvicorn_responses.response(servers, send, headers)
            or Response(send, headers)
        )
        response.where = f"the event stream at {scope['path'][:MAX_PATH]!r}"
        self._socket = Socket(response, SseEndpoint)
        self._session: Session | None = None

    async def serve(self, receive: Any) -> None:
        """Answer; leave nothing behind however that ends."""
        try:
            with contextlib.suppress(SocketClosed):  # the client is gone
                await open_session(self._socket, self._scope, self._claim, self._keep)
            if self._session is not None:
                await self._wait_for_end(receive)
        except asyncio.CancelledError:  # the server ends
            if self._session is not None:
                await self._session.close(CloseCode.SHUTTING_DOWN)
            raise
        finally:
            if self._session is not None:
                await self._session.stop()

    async def _wait_for_end(self, receive: Any) -> None:
        """Wait until the client is gone, or the response is complete."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._response.ended = True

    def _claim(self, identity: Identity) -> Resume:
        """Return where the reader begins.

        Raises:
            IdentityRefused: It does not say so in a way that can be understood.
        """
        scope = self._scope
        try:
            ids = header(scope, b"last-event-id")
            request = parse_request(scope.get("query_string", b""), ids)
        except ProtocolError as exc:
            raise IdentityRefused(CloseCode.BAD_REQUEST, str(exc)) from exc
        if identity.is_anonymous and not request.topics:
            text = "not logged in; without a login, only topics can be read"
            raise IdentityRefused(CloseCode.NOT_AUTHENTICATED, text)
        endpoint = self._socket.endpoint
        assert isinstance(endpoint, SseEndpoint)
        endpoint.as_json = request.as_json
        endpoint.claimed = request.positions or {}
        limit = endpoint.limits.subscriptions
        if len(request.topics) > limit:
            text = f"more than {limit} topics (WSGATEWAY_MAX_SUBSCRIPTIONS); leave some out"
            raise IdentityRefused(CloseCode.BAD_REQUEST, text)
        return _claim_of(request, identity, parameter(scope, "device"))

    def _keep(self, session: Session) -> None:
        self._session = session
        self._response.on_shutdown = lambda: session.close_soon(CloseCode.SHUTTING_DOWN)


def _claim_of(request: Request, identity: Identity, device: str | None) -> Resume:
    """Return where a reader begins.

    Args:
        request: What it asks for.
        identity: Who it is.
        device: The one that it names; its cursor counts then, where the reader has no position.
    """
    since, known = request.since, request.positions
    topics = []
    tokens = {topic_of(token): token for token in request.tokens}
    for number, topic in enumerate(request.topics):
        at = (known or {}).get(mark(topic))
        epoch, offset = (None, None) if at is None else at
        topics.append(Subscribe(topic, str(number), epoch, offset, since, tokens.get(topic)))
    if known is None:
        return Resume(device, since=since, topics=topics)
    at = known.get(mark(identity.inbox))
    if at is None:  # it was another user's, whose name nobody knows
        return Resume(device, "", 0, "", since, topics)
    return Resume(device, at.epoch, at.offset, since=since, topics=topics)
