"""The health probes and metrics, for projects that do not use `wsgateway.asgi`."""

from __future__ import annotations

from django.urls import path

from wsgateway import health
from wsgateway.apps import require_installed
from wsgateway.metrics.site import metrics

require_installed()

app_name = "wsgateway"

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
]
