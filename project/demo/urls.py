"""The page, and what its script asks."""

from __future__ import annotations

from django.urls import path

from project.demo import views

app_name = "demo"

urlpatterns = [
    path("", views.page, name="page"),
    path("publish/", views.publish, name="publish"),
    path("demo/token/", views.token, name="token"),
]
