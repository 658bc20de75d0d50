"""The health probes and metrics, for projects that do not use `wsgateway.asgi`.

Those have no server-sent events, either; a request for them is told so."""

from __future__ import annotations

from django.urls import path, re_path

from wsgateway import health
from wsgateway.apps import require_installed
from wsgateway.metrics.site import metrics
from wsgateway.sse import needs_asgi

require_installed()

app_name = "wsgateway"

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
    re_path(r"^sse/", needs_asgi, name="sse"),
]
