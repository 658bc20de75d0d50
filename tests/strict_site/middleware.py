"""Middleware that does not know whom a request is for, as that of sites with tenants."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse


def tenant_by_host(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Answer for the only tenant; 418 for everything else."""

    def answer(request: HttpRequest) -> HttpResponse:
        if request.headers["host"] != "chat.example.com":
            return HttpResponse("no such tenant", status=418)
        return get_response(request)

    return answer
