"""Dead letters in the admin: look at them, send them again, purge them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse

from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.exceptions import WsGatewayError
from wsgateway.models import DeadLetterEntry
from wsgateway.services import deadletters
from wsgateway.services.deadletters import DeadLetter, DeadLetterMissing

if TYPE_CHECKING:
    Base = admin.ModelAdmin[DeadLetterEntry]
else:
    Base = admin.ModelAdmin

__all__ = ["DeadLetterAdmin"]

SHOWN = 200
"""Dead letters on the page; the oldest ones."""


async def _page(broker: Broker, service: str | None) -> tuple[list[DeadLetter], bool]:
    found: list[DeadLetter] = []
    async for letter in deadletters.letters(broker, service):
        if len(found) == SHOWN:
            return found, True
        found.append(letter)
    return found, False


@admin.register(DeadLetterEntry)
class DeadLetterAdmin(Base):
    """The list and one letter; reads JetStream, not the database."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Nothing is written by hand."""
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list; POST sends again, or purges, what is selected."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        service = request.GET.get("service") or None
        letters: list[DeadLetter] | None = None  # not known
        more = False
        try:
            if request.method == "POST":
                self._act(request)
                return redirect(request.get_full_path())
            letters, more = runtime.call_sync(lambda broker: _page(broker, service))
        except WsGatewayError as exc:
            messages.error(request, str(exc))
        return self._render(
            request, "list", "Dead letters", letters=letters, more=more, service=service or ""
        )

    def _act(self, request: HttpRequest) -> None:
        retry = "retry" in request.POST
        if not retry and "purge" not in request.POST:
            raise BadRequest("neither retry nor purge")
        allowed = self.has_change_permission if retry else self.has_delete_permission
        if not allowed(request):
            raise PermissionDenied
        act = deadletters.retry if retry else deadletters.purge
        offsets = [int(value) for value in request.POST.getlist("offset") if value.isdigit()]
        count, problems = runtime.call_sync(lambda broker: deadletters.act_on(broker, act, offsets))
        if count:
            done = "put back into the queue" if retry else "purged"
            messages.success(request, f"{count} dead letter(s) {done}.")
        for text in problems:
            messages.error(request, text)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        """Show one dead letter with its traceback."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if not object_id.isdigit():
            raise Http404
        try:
            letter = runtime.call_sync(lambda broker: deadletters.find(broker, int(object_id)))
        except DeadLetterMissing as exc:
            raise Http404 from exc
        except WsGatewayError as exc:
            messages.error(request, str(exc))
            return redirect("admin:wsgateway_deadletterentry_changelist")
        payload = letter.payload.decode("utf-8", "backslashreplace")
        title = f"Dead letter {letter.offset}"
        return self._render(request, "detail", title, letter=letter, payload=payload)

    def _render(
        self, request: HttpRequest, template: str, title: str, **context: Any
    ) -> HttpResponse:
        context |= {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "may_retry": self.has_change_permission(request),
            "may_purge": self.has_delete_permission(request),
        }
        return TemplateResponse(
            request, f"admin/wsgateway/deadletterentry/{template}.html", context
        )
