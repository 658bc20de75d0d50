"""The class of a project's outermost ASGI application, which `wsgateway.asgi.application` makes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from wsgateway.conf import settings
from wsgateway.gateway.daphne import at_shutdown, stop_listening
from wsgateway.gateway.transport import SERVER_SEND
from wsgateway.metrics.access import is_restricted

if TYPE_CHECKING:
    from django.http import HttpResponse

__all__ = ["App", "Application", "Page", "Probe"]

App = Callable[[Any, Any, Any], Awaitable[None]]
Probe = Callable[[], Awaitable["HttpResponse"]]
Page = Callable[[Any], Awaitable["HttpResponse | None"]]
"""Gets the request's scope; returns None if the site's application is to answer."""


class Application:
    """What `wsgateway.asgi.application` makes.

    Args:
        http: Answers requests.
        websocket: Serves websockets.
        lifespan: Speaks ASGI's lifespan.
        probes: What answers GET and HEAD of a path below the site's, before *http*.
        pages: The same for those that may decline, such as metrics.
        streams: The path below which it serves server-sent events, and what does.
    """

    def __init__(
        self,
        http: App,
        websocket: App,
        lifespan: App,
        probes: Mapping[str, Probe],
        pages: Mapping[str, Page] = MappingProxyType({}),
        streams: tuple[str, App] | None = None,
    ) -> None:
        self._applications = {
            "http": self._serve_http,
            "websocket": self._serve_websocket,
            "lifespan": lifespan,
        }
        self._http = http
        self.websocket = websocket
        self.probes = probes
        self.pages = pages
        self._streams = streams
        self.stream_path = None if streams is None else streams[0]
        self._has_joined = False  # the workers whose metrics are one page
        self._requests: set[asyncio.Task[Any]] = set()  # those being answered
        self._ending = False  # whether the server ends: it answers on the connections that it has
        self._ended = False  # whether nothing new reaches the site

    async def begin(self) -> None:
        """Prepare for the end of the server that has begun to run; only daphne needs it."""
        at_shutdown(self._begin_to_end)
        at_shutdown(self._finish_requests, last=True)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        try:
            serve = self._applications[scope["type"]]
        except KeyError:
            raise ValueError(f"no application serves the type {scope['type']!r}") from None
        if not self._has_joined and "server" in scope:
            self._join(scope)
        await serve(scope, receive, send)

    def _join(self, scope: Any) -> None:
        """Let the server's other workers ask this one for its metrics."""
        if self.pages and is_restricted():
            from wsgateway.metrics.site import join

            join(scope)
            self._has_joined = True

    async def _own_response(self, scope: Any, path: str) -> HttpResponse | None:
        """Return our own answer; None if the site's application is to answer."""
        if path not in (*self.probes, *self.pages) or scope["method"] not in ("GET", "HEAD"):
            return None
        if path in self.probes:
            return await self.probes[path]()
        return await self.pages[path](scope)

    async def _serve_http(self, scope: Any, receive: Any, send: Any) -> None:
        scope, path = _below_root({**scope, SERVER_SEND: send})
        if self._streams is not None and path.startswith(self._streams[0]):
            await self._streams[1](scope, receive, send)  # it ends by itself, in time
            return
        if self._ended:
            await _refuse(send)
            return
        if self._ending:
            send = _closing(send)
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            await self._answer(scope, path, receive, send)
        finally:
            self._requests.discard(task)

    async def _begin_to_end(self) -> None:
        """Have proxies send new requests elsewhere.

        They keep connections open. If requests that come on those were refused from now on, a
        visitor would see it, because no proxy tries another gateway after a response.
        """
        self._ending = True
        stop_listening()

    async def _finish_requests(self) -> None:
        """Return once no request is being answered; take no others.

        Django answers in threads that wait for the event loop in between. Python joins them at its
        end, so if the loop stopped first, the process would never end. Daphne waits for them only
        if each of its connections has an application, which one that was upgraded to a websocket
        within the last second has not.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.CLOSE_TIMEOUT / 4):
                while self._requests:
                    await asyncio.wait(self._requests)
        self._ended = True
        for task in self._requests:  # a stream may be endless
            task.cancel()
        if self._requests:
            await asyncio.wait(self._requests)

    async def _answer(self, scope: Any, path: str, receive: Any, send: Any) -> None:
        response = await self._own_response(scope, path)
        if response is None:
            await self._http(scope, receive, send)
            return
        content = response.content
        headers = {**response.headers, "Content-Length": str(len(content))}
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            }
        )
        body = content if scope["method"] == "GET" else b""
        await send({"type": "http.response.body", "body": body})

    async def _serve_websocket(self, scope: Any, receive: Any, send: Any) -> None:
        from wsgateway.routing import refuse_unknown_path

        scope, _ = _below_root(scope)
        try:
            await self.websocket({**scope, SERVER_SEND: send}, receive, send)
        except ValueError as exc:
            # Channels' router raises this before it has received anything.
            if not str(exc).startswith("No route found for path"):
                raise
            await refuse_unknown_path(scope, receive, send)


def _closing(send: Any) -> Any:
    """Return a *send* that tells the client to send no more on this connection."""

    async def wrapped(event: Any) -> None:
        if event["type"] == "http.response.start":
            event = {**event, "headers": [*event.get("headers", ()), (b"connection", b"close")]}
        await send(event)

    return wrapped


async def _refuse(send: Any) -> None:
    """Answer a request that came when the server had all but ended."""
    headers = [(b"connection", b"close"), (b"content-length", b"0"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _below_root(scope: Any) -> tuple[Any, str]:
    """Return *scope* with a path that begins with the root path, and the rest of that path.

    The root is FORCE_SCRIPT_NAME or the server's root path. Some proxies remove it from the path,
    and some servers add it again. Where it is missing, Channels' router refuses sockets, and Django
    leads visitors out of the site after the login.
    """
    root = (settings.script_name or scope.get("root_path") or "").rstrip("/")
    path: str = scope["path"]
    if not root:
        return scope, path
    if path == root or path.startswith(f"{root}/"):
        path = path[len(root) :]
    return {**scope, "root_path": root, "path": root + path}, path
