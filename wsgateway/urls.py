"""The health probes. Include them where you like; `wsgateway.asgi` answers them without this."""

from __future__ import annotations

from django.urls import path

from wsgateway import health
from wsgateway.apps import require_installed

require_installed()

app_name = "wsgateway"

urlpatterns = [
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
]
