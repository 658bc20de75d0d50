"""The websocket routes, for a project's ``URLRouter``."""

from __future__ import annotations

from django.urls import re_path

from wsgateway.consumers import GatewayConsumer

__all__ = ["websocket_urlpatterns"]

websocket_urlpatterns = [
    re_path(r"^ws/(?P<service>[^/]+)/(?P<user>[^/]+)/$", GatewayConsumer.as_asgi()),
    re_path(r"^ws/(?P<service>[^/]+)/$", GatewayConsumer.as_asgi()),
]
