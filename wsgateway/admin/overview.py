"""The overview in the admin: who is connected, what waits, what is stuck."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.db import DatabaseError, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone

from wsgateway import alerts
from wsgateway.admin.base import REFRESH, PageAdmin, may_see, render
from wsgateway.admin.dead_letters import letter_rights
from wsgateway.admin.lookups import Answers, ask
from wsgateway.admin.questions import counts, gateways, queues, streams, workers
from wsgateway.admin.services import service_rows
from wsgateway.admin.targets import VIEW
from wsgateway.admin.users import GatewayUserMixin, OnlineFilter
from wsgateway.alerts import Alert
from wsgateway.models import Overview, ServiceEntry

__all__ = ["OverviewAdmin"]


def outbox_alerts(answers: Answers) -> Iterator[Alert]:
    """Yield what is stuck in the outbox, if the project has one."""
    if not apps.is_installed("wsgateway.outbox"):
        return
    rows = apps.get_model("wsgateway_outbox", "OutboxMessage")._default_manager
    try:
        with transaction.atomic(using=rows.db):  # so that a failure leaves the request's alone
            failed = rows.filter(failed_at__isnull=False).count()
            oldest = rows.filter(failed_at__isnull=True).order_by("id").first()
    except DatabaseError as exc:
        answers.add_problem(f"outbox: {exc}")
    else:
        yield from alerts.of_outbox(failed, oldest.created_at if oldest else None, timezone.now())


def online_users_url(site: admin.AdminSite, request: HttpRequest) -> str:
    """Return where the Django users are listed who are online; empty if not for this user."""
    model = get_user_model()
    owner: object = site.get_model_admin(model) if site.is_registered(model) else None
    if not isinstance(owner, GatewayUserMixin) or not request.user.has_perm(VIEW):
        return ""
    if not owner.has_view_permission(request):
        return ""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
    return reverse(name, current_app=site.name, query={OnlineFilter.parameter_name: "yes"})


def all_alerts(answers: Answers) -> list[Alert]:
    """Return what needs attention; the errors first."""
    found = [*outbox_alerts(answers)]
    if answers["gateways"] is not None:
        found += alerts.of_gateways(answers["gateways"])
    if answers["queues"] is not None:
        found += alerts.of_queues(answers["queues"], datetime.now(UTC))
    if answers["streams"] is not None:
        found += alerts.of_streams(answers["streams"])
    if answers["workers"] is not None:
        found += alerts.of_workers(answers["workers"])
    return sorted(found, key=lambda alert: alert.level != "error")


@admin.register(Overview)
class OverviewAdmin(PageAdmin):
    """The page that an operator opens first."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the whole installation."""
        self.require_view(request)
        answers = ask(
            counts=counts, gateways=gateways, queues=queues, workers=workers, streams=streams
        )
        found = answers["counts"]
        queued = answers["queues"]
        context = {
            **answers.values,
            "alerts": [(alert, self._url(request, alert)) for alert in all_alerts(answers)],
            "rows": service_rows(queued, found, answers["workers"]),
            "sockets": None if found is None else sum(found.sockets.values()),
            "users": None if found is None else sum(found.users.values()),
            "waiting": None if queued is None else sum(queue.waiting for queue in queued),
            "dead": None if queued is None else sum(queue.dead for queue in queued),
            "users_url": online_users_url(self.admin_site, request),
            "may_see_services": may_see(self.admin_site, request, ServiceEntry),
            **letter_rights(self.admin_site, request),
        }
        return render(
            self,
            request,
            "admin/wsgateway/overview/list.html",
            "Overview",
            context,
            refresh=REFRESH,
            problems=answers.problems,
        )

    def _url(self, request: HttpRequest, alert: Alert) -> str:
        """Return where an alert leads; empty if the user may not see that page."""
        if not may_see(self.admin_site, request, apps.get_model(alert.page)):
            return ""
        site, base = self.admin_site.name, f"admin:{alert.page.replace('.', '_')}"
        if alert.page == "wsgateway.deadletterentry":
            return reverse(f"{base}_changelist", current_app=site, query={"service": alert.name})
        if alert.name:
            return reverse(f"{base}_change", args=[quote(alert.name)], current_app=site)
        return reverse(f"{base}_changelist", current_app=site)
