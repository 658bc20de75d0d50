"""The pages, and what their script asks."""

from __future__ import annotations

from django.urls import path

from project.demo import documents, views

app_name = "demo"

urlpatterns = [
    path("", views.start, name="start"),
    path("demo/", views.page, name="page"),
    path("demo/publish/", views.publish, name="publish"),
    path("demo/history/", views.history, name="history"),
    path("demo/token/", views.token, name="token"),
    path("documents/", documents.page, {"name": ""}, name="documents"),
    path("documents/<path:name>", documents.page),
    path("favicon.ico", views.favicon),
]
