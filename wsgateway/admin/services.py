"""Services in the admin: what waits, who handles it, and what could not be handled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.http import HttpRequest, HttpResponse

from wsgateway import presence
from wsgateway.admin.base import REFRESH, PageAdmin, render
from wsgateway.admin.dead_letters import letter_rights, oldest
from wsgateway.admin.lookups import Answers, Question, ask
from wsgateway.admin.questions import counts, queues, workers
from wsgateway.admin.targets import VIEW
from wsgateway.models import InboxEntry, ServiceEntry
from wsgateway.protocol.subjects import Inbox

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wsgateway.broker.operations import Queue
    from wsgateway.presence import Counts
    from wsgateway.services.status import Handled, ServiceWork, Worker, Workers

__all__ = ["ServiceAdmin", "ServiceRow", "service_rows"]

TEMPLATES = "admin/wsgateway/serviceentry"
LETTERS = 10
"""Dead letters on a service's page."""
ONLINE = 50
"""Users on a service's page."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """What a worker does for some services.

    Attributes:
        worker: It.
        work: What it does for each of them.
    """

    worker: Worker
    work: dict[str, ServiceWork]

    def total(self, name: str) -> int:
        """Return the sum of a number of `ServiceWork`."""
        return sum(getattr(each, name) for each in self.work.values())

    @property
    def totals(self) -> dict[str, int]:
        """The sums, for templates."""
        names = ("concurrency", "in_hand", "handled", "retried", "rejected", "failed")
        return {name: self.total(name) for name in names}

    @property
    def rate(self) -> float:
        """Messages handled per second."""
        return sum(each.rates.get("handled", 0.0) for each in self.work.values())

    @property
    def running(self) -> list[Handled]:
        """What its handlers have now."""
        return [each for each in self.worker.running if each.service in self.work]


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """What is known of a service; None: unknown.

    Attributes:
        name: The service's.
        sockets: How many are open.
        users: How many have one.
        queue: What waits for it.
        workers: Those that run it.
    """

    name: str
    sockets: int | None
    users: int | None
    queue: Queue | None
    workers: list[WorkerRow] | None

    @property
    def rate(self) -> float | None:
        """Messages handled per second."""
        return None if self.workers is None else sum(each.rate for each in self.workers)


def service_rows(
    found_queues: Iterable[Queue] | None, found_counts: Counts | None, found: Workers | None
) -> list[ServiceRow]:
    """Join what is known of each service, by name."""
    by_name = {queue.service: queue for queue in found_queues or ()}
    names = {*by_name, *(found_counts.sockets if found_counts else ())}
    names |= {name for worker in found or () for name in worker.services}
    return [
        ServiceRow(
            name,
            found_counts.sockets.get(name, 0) if found_counts else None,
            found_counts.users.get(name, 0) if found_counts else None,
            by_name.get(name),
            None if found is None else worker_rows(found, name),
        )
        for name in sorted(names)
    ]


def worker_rows(workers: Workers, service: str | None = None) -> list[WorkerRow]:
    """Return what each worker does for *service*, if it does; None: for all its services."""
    if service is None:
        return [WorkerRow(each, each.services) for each in workers]
    return [
        WorkerRow(each, {service: each.services[service]})
        for each in workers
        if service in each.services
    ]


def _rows(answers: Answers) -> list[ServiceRow]:
    return service_rows(answers["queues"], answers["counts"], answers["workers"])


@admin.register(ServiceEntry)
class ServiceAdmin(PageAdmin):
    """The queues, and the workers that empty them."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show all services, and all workers."""
        self.require_view(request)
        answers = ask(queues=queues, counts=counts, workers=workers)
        found: Workers | None = answers["workers"]
        context = {
            "rows": _rows(answers),
            "workers": None if found is None else worker_rows(found),
            "silent": () if found is None else found.silent,
            "may_see_users": request.user.has_perm(VIEW),
            **letter_rights(self.admin_site, request),
        }
        return render(
            self,
            request,
            f"{TEMPLATES}/list.html",
            "Services",
            context,
            refresh=REFRESH,
            problems=answers.problems,
        )

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show one service: its workers, what they handle, who is online, its dead letters."""
        self.require_view(request)
        name = unquote(object_id)
        rights = letter_rights(self.admin_site, request)
        may_see_users = request.user.has_perm(VIEW)
        questions: dict[str, Question] = {"queues": queues, "counts": counts, "workers": workers}
        if may_see_users:
            questions["online"] = lambda broker: presence.aonline(name, limit=ONLINE)
        if rights["may_see_letters"]:
            questions["dead_letters"] = lambda broker: oldest(broker, name, limit=LETTERS)
        answers = ask(**questions)
        found, more = answers.get("dead_letters") or (None, False)
        online: presence.Page | None = answers.get("online")
        context = {
            "name": name,
            "row": next((row for row in _rows(answers) if row.name == name), None),
            "may_see_users": may_see_users,
            "online": online,
            "may_see_inboxes": self.admin_site.is_registered(InboxEntry),
            "users": [
                (user, sockets, InboxEntry.of(Inbox(name, user)).pk)
                for user, sockets in (online.users if online else {}).items()
            ],
            "letters": found,
            "more": more,
            **rights,
        }
        return render(
            self,
            request,
            f"{TEMPLATES}/detail.html",
            name,
            context,
            refresh=REFRESH,
            problems=answers.problems,
        )
