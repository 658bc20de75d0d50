"""Streams in the admin: limits, usage, replicas, and what differs from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.http import HttpRequest, HttpResponse

from wsgateway.admin.base import REFRESH, PageAdmin, render
from wsgateway.admin.lookups import ask
from wsgateway.admin.questions import streams
from wsgateway.models import StreamEntry

if TYPE_CHECKING:
    from wsgateway.broker.operations import Stream

__all__ = ["StreamAdmin"]

TEMPLATES = "admin/wsgateway/streamentry"


@admin.register(StreamEntry)
class StreamAdmin(PageAdmin):
    """What the broker stores, and how full it is."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show all."""
        self.require_view(request)
        answers = ask(streams=streams)
        return render(
            self,
            request,
            f"{TEMPLATES}/list.html",
            "Streams",
            {"streams": answers["streams"]},
            refresh=REFRESH,
            problems=answers.problems,
        )

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show one stream, with its replicas."""
        self.require_view(request)
        name = unquote(object_id)
        answers = ask(streams=streams)
        found: list[Stream] | None = answers["streams"]
        stream = next((each for each in found or () if each.name == name), None)
        return render(
            self,
            request,
            f"{TEMPLATES}/detail.html",
            name,
            {"streams": found, "stream": stream},
            refresh=REFRESH,
            problems=answers.problems,
        )
