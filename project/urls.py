"""The site's pages: the demonstration, login, probes, and the admin."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path

urlpatterns = [
    path("", include("project.demo.urls")),
    path("", include("wsgateway.urls")),
    path(
        "login/",
        LoginView.as_view(
            template_name="demo/login.html",
            redirect_authenticated_user=True,
            extra_context={"debug": settings.DEBUG},
        ),
        name="login",
    ),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("admin/", admin.site.urls),
]
