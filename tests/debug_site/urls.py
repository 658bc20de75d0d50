"""The site's pages, and one that fails."""

from __future__ import annotations

from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse
from django.urls import path

from project.urls import urlpatterns as pages


def fails(request: HttpRequest) -> HttpResponse:
    """Raise what is a server's error."""
    raise RuntimeError("on purpose")


def suspects(request: HttpRequest) -> HttpResponse:
    """Raise what is a client's error."""
    raise SuspiciousOperation("on purpose")


urlpatterns = [*pages, path("fails/", fails), path("suspects/", suspects)]
