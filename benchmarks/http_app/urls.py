"""The site's pages and the server API."""

from __future__ import annotations

from django.urls import include, path

urlpatterns = [
    path("api/", include("wsgateway.api.urls")),
    path("", include("project.urls")),
]
