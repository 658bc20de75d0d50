"""What every response of the site carries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware
from whitenoise.base import StaticFile
from whitenoise.middleware import WhiteNoiseMiddleware

__all__ = ["StaticFilesMiddleware", "content_security_policy"]

Handler = Callable[[HttpRequest], HttpResponseBase]
AsyncHandler = Callable[[HttpRequest], Awaitable[HttpResponseBase]]

POLICY = (
    "default-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)

DEBUG_PAGES = frozenset((400, 403, 404, 500))
"""Status codes of the pages that Django makes in development, of inline styles and scripts.

Django's own ContentSecurityPolicyMiddleware, since 6.0, leaves 404 and 500 alone in the same way;
400 is the debug page of suspicious requests, and 403 that of a failed CSRF check."""


@sync_and_async_middleware
def content_security_policy(get_response: Handler | AsyncHandler) -> Handler | AsyncHandler:
    """Forbid scripts, styles and frames from anywhere else, and inline ones.

    Except on Django's debug pages, which DEBUG shows.
    """

    async def handle_async(request: HttpRequest) -> HttpResponseBase:
        return _add_policy(await get_response(request))  # type: ignore[misc]

    def handle(request: HttpRequest) -> HttpResponseBase:
        return _add_policy(get_response(request))  # type: ignore[arg-type]

    return handle_async if iscoroutinefunction(get_response) else handle


def _add_policy(response: HttpResponseBase) -> HttpResponseBase:
    if not (settings.DEBUG and response.status_code in DEBUG_PAGES):
        response.headers.setdefault("Content-Security-Policy", POLICY)
    return response


class StaticFilesMiddleware(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise, whose streamed files Django can only read into memory, warning, under ASGI."""

    def add_files(self, root: str, prefix: str | None = None) -> None:
        """Add a folder that exists. WhiteNoise warns of one that does not exist yet."""
        if Path(root).is_dir():
            super().add_files(root, prefix)

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> HttpResponse:
        """Return the whole file at once; static files are small."""
        found = static_file.get_response(request.method, request.META)
        content = b"" if found.file is None else found.file.read()
        if found.file is not None:
            found.file.close()
        response = HttpResponse(content, status=found.status)
        del response["Content-Type"]
        for key, value in found.headers:
            response[key] = value
        return response
