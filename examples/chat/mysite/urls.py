from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.urls import include, path
from django.views.generic import TemplateView

from chat import views

urlpatterns = [
    path("", views.index),
    path("room/", login_required(TemplateView.as_view(template_name="chat/room.html"))),
    path("accounts/", include("django.contrib.auth.urls")),
    path("admin/", admin.site.urls),
]
