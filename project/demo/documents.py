"""Serves what ``make site`` has built, during development."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import SuspiciousFileOperation
from django.http import Http404, HttpRequest, HttpResponse
from django.utils._os import safe_join
from django.views.decorators.http import require_safe

__all__ = ["are_built", "page"]

INLINE = (
    "default-src 'self' data:; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
)
"""Sphinx' pages have inline scripts and styles; the site's own have none."""


def folder() -> Path:
    """Return where ``make site`` puts the documents."""
    return Path(settings.BASE_DIR) / "build" / "site"


def are_built() -> bool:
    """Say whether there is something to serve."""
    return bool(settings.DEBUG) and (folder() / "index.html").is_file()


@login_not_required
@require_safe
def page(request: HttpRequest, name: str) -> HttpResponse:
    """Return a file of the documents."""
    if not are_built():
        raise Http404("run `make site` to build the documents")
    try:
        path = Path(safe_join(str(folder()), name))
    except SuspiciousFileOperation:
        raise Http404("no such document") from None
    if path.is_dir():
        path /= "index.html"
    if not path.is_file():
        raise Http404("no such document")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    response = HttpResponse(path.read_bytes(), content_type=kind)
    response.headers["Content-Security-Policy"] = INLINE
    return response
