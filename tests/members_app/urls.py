"""The admin site; Django's own is not there."""

from __future__ import annotations

from django.contrib.admin import AdminSite
from django.contrib.auth.admin import UserAdmin
from django.urls import path

from tests.members_app.models import Member
from wsgateway.admin import GatewayUserMixin, InboxAdmin
from wsgateway.models import InboxEntry


class MemberAdmin(GatewayUserMixin, UserAdmin):  # type: ignore[type-arg]
    """The project's own."""

    list_display = ("email", "is_staff")
    ordering = ("email",)


site = AdminSite(name="ops")
site.register(Member, MemberAdmin)
site.register(InboxEntry, InboxAdmin)

urlpatterns = [path("ops/", site.urls)]
