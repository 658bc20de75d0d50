"""What the page about the server API has a project write."""

from __future__ import annotations

from django.urls import include, path

urlpatterns = [path("api/gateway/", include("wsgateway.api.urls"))]
