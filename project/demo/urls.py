"""The pages, and what their script asks."""

from __future__ import annotations

from django.urls import path

from project.demo import documents, rooms, views

app_name = "demo"

urlpatterns = [
    path("", views.start, name="start"),
    path("demo/", views.page, name="page"),
    path("demo/publish/", views.publish, name="publish"),
    path("demo/history/", views.history, name="history"),
    path("demo/token/", views.token, name="token"),
    path("demo/room/", rooms.page, {"name": "lobby"}, name="lobby"),
    path("demo/room/private/", rooms.page, {"name": "private"}, name="private"),
    path("demo/room/<slug:name>/history/", rooms.history, name="room-history"),
    path("demo/room/<slug:name>/token/", rooms.token, name="room-token"),
    path("demo/room/<slug:name>/let-in/", rooms.let_in, name="room-let-in"),
    path("demo/room/<slug:name>/show-out/", rooms.show_out, name="room-show-out"),
    path("documents/", documents.page, {"name": ""}, name="documents"),
    path("documents/<path:name>", documents.page),
    path("favicon.ico", views.favicon),
]
