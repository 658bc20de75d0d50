"""Pages: the demonstration and the health probes. Include them where you like."""

from __future__ import annotations

from django.urls import path

from wsgateway import health, views
from wsgateway.apps import require_installed

require_installed()

app_name = "wsgateway"

urlpatterns = [
    path("", views.demo, name="demo"),
    path("publish/", views.publish, name="publish"),
    path("demo/token/", views.token, name="token"),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
]
