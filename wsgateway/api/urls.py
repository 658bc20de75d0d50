"""Mounts the server API: ``path("api/gateway/", include("wsgateway.api.urls"))``.

The version is part of the path. It shows in every log and every example, a proxy can route by it,
and two versions can be there side by side while clients move over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.urls import include, path, re_path
from django.utils.cache import patch_cache_control

from wsgateway import counters
from wsgateway.api.problems import Problem, respond
from wsgateway.apps import require_installed
from wsgateway.decorators import never_atomic

require_installed()
if find_spec("ninja") is None:
    raise ImproperlyConfigured(
        "the server API needs django-ninja, which is not installed; "
        "run: pip install 'wsgateway[api]'"
    )

from wsgateway.api.site import api, not_found  # noqa: E402 - it imports ninja


def _finished(view: Callable[..., Any]) -> Callable[..., Any]:
    """Make a view of ninja independent of the project: of its transactions and its logins."""

    @wraps(view)
    async def finished(request: HttpRequest, **names: Any) -> HttpResponse:
        try:
            response: HttpResponse = await view(request, **names)
        except Exception:
            counters.api.note(500)
            raise
        counters.api.note(response.status_code)
        if response.status_code == 405:
            allowed = response.headers["Allow"]
            text = f"{request.path} takes {allowed}, not {request.method}"
            response = respond(request, Problem("method-not-allowed", text, {"Allow": allowed}))
        patch_cache_control(response, no_store=True)
        return response

    return never_atomic(login_not_required(finished))


def _patterns() -> list[Any]:
    found: list[Any] = api.urls[0]
    for pattern in found:
        if pattern.name == "api-root":  # ninja answers it with a page for people
            pattern.callback = not_found
        elif pattern.name == "openapi-json":
            pattern.callback = login_not_required(pattern.callback)
        else:
            pattern.callback = _finished(pattern.callback)
    return found


urlpatterns = [
    path("v1/", include((_patterns(), "ninja"), namespace=api.urls_namespace)),
    re_path("", not_found),
]
