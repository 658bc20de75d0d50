"""Dead letters in the admin: look at them, send them again, purge them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, DELETION
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect

from wsgateway.admin.base import (
    PageAdmin,
    carry_out,
    confirm,
    is_confirmed,
    log,
    may_see,
    render,
)
from wsgateway.admin.lookups import ask
from wsgateway.broker.base import Broker
from wsgateway.exceptions import WsGatewayError
from wsgateway.models import DeadLetterEntry
from wsgateway.services import deadletters
from wsgateway.services.deadletters import DeadLetter, DeadLetterMissing

__all__ = ["DeadLetterAdmin", "letter_rights", "oldest"]

SHOWN = 100
"""Dead letters on a page."""
AT_ONCE = 1000
"""Dead letters that "all" takes at once, so that the request ends before its proxy gives up."""
ACTIONS = {
    "retry": ("", ""),  # at once: nothing is lost
    "purge": (
        "Purge dead letters",
        "Do you want to purge these dead letters? What the clients sent is lost.",
    ),
    "retry_all": (
        "Send all again",
        "Do you want to put the oldest {at_once:,} dead letters{of} back into the queue?",
    ),
    "purge_all": (
        "Purge all dead letters",
        "Do you want to purge the oldest {at_once:,} dead letters{of}? What the clients "
        "sent is lost.",
    ),
}
"""What can be done, and the title and text of the question before that."""
MAX_DIGITS = 19
"""Of an offset."""
TEMPLATES = "admin/wsgateway/deadletterentry"


def _offset(text: str) -> int | None:
    """Return the offset that *text* names; None if it is not one."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else None


def _filters(request: HttpRequest) -> tuple[str | None, str | None]:
    """Return the service and the user whose dead letters are wanted; None: of all."""
    wanted = (request.GET.get(name, "").strip() or None for name in ("service", "user"))
    return next(wanted), next(wanted)


async def oldest(
    broker: Broker,
    service: str | None,
    after: int = 0,
    limit: int | None = None,
    user: str | None = None,
) -> tuple[list[DeadLetter], bool]:
    """Return the oldest dead letters behind the offset *after*, and whether there are more."""
    found: list[DeadLetter] = []
    async for letter in deadletters.letters(broker, service, after, user):
        if len(found) == (limit or SHOWN):
            return found, True
        found.append(letter)
    return found, False


def letter_rights(site: admin.AdminSite, request: HttpRequest) -> dict[str, bool]:
    """Return what the user may do with dead letters on *site*, for templates."""
    sees = may_see(site, request, DeadLetterEntry)
    return {
        "may_see_letters": sees,
        "may_retry": sees and request.user.has_perm("wsgateway.change_deadletterentry"),
        "may_purge": sees and request.user.has_perm("wsgateway.delete_deadletterentry"),
    }


async def _find(broker: Broker, offset: int) -> DeadLetter | None:
    try:
        return await deadletters.find(broker, offset)
    except DeadLetterMissing:
        return None


async def _act_on_each(
    broker: Broker, retry: bool, offsets: list[int]
) -> tuple[list[int], list[int], list[str]]:
    """Send again or purge.

    Returns:
        To which ones it was done, which one perhaps, and for each of the others why not.
    """
    act = deadletters.retry if retry else deadletters.purge
    done: list[int] = []
    problems: list[str] = []
    for offset in offsets:
        try:
            count, reasons = await deadletters.act_on(broker, act, [offset])
        except WsGatewayError as exc:  # those before it are done, and must be in the log
            problems.append(f"stopped at dead letter {offset}: {exc}")
            return done, [offset], problems
        done += [offset] * count
        problems += reasons
    return done, [], problems


@admin.register(DeadLetterEntry)
class DeadLetterAdmin(PageAdmin):
    """The list and one letter; reads JetStream, not the database."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list; POST sends again, or purges, what is selected."""
        self.require_view(request)
        if request.method == "POST":
            return self._act(request)
        service, user = _filters(request)
        after = _offset(request.GET.get("after", "")) or 0
        answers = ask(dead_letters=lambda broker: oldest(broker, service, after, user=user))
        letters, more = answers["dead_letters"] or (None, False)
        return render(
            self,
            request,
            f"{TEMPLATES}/list.html",
            "Dead letters",
            {
                "letters": letters,
                "more": more,
                "service": service or "",
                "user_name": user or "",
                "query": urlencode({"service": service or "", "user": user or ""}),
                "after": after,
                **letter_rights(self.admin_site, request),
            },
            problems=answers.problems,
        )

    def _act(self, request: HttpRequest) -> HttpResponse:
        action = next((name for name in ACTIONS if name in request.POST), None)
        if action is None:
            raise BadRequest("neither retry nor purge")
        retry, everything = action.startswith("retry"), action.endswith("_all")
        allowed = self.has_change_permission if retry else self.has_delete_permission
        if not allowed(request):
            raise PermissionDenied
        offsets = [*filter(None, map(_offset, request.POST.getlist("offset")))]
        if not offsets and not everything:
            messages.warning(request, "Select dead letters first.")
        elif is_confirmed(request) or action == "retry":
            self._carry_out(request, retry, None if everything else offsets)
        else:
            return self._confirm(request, action, offsets)
        return redirect(request.get_full_path())

    def _confirm(self, request: HttpRequest, action: str, offsets: list[int]) -> HttpResponse:
        title, question = ACTIONS[action]
        service, user = _filters(request)
        of = (f" of {user}" if user else "") + (f" in {service}" if service else "")
        return confirm(
            self,
            request,
            title,
            question.format(of=of, at_once=AT_ONCE),
            items=[f"Dead letter {offset}" for offset in offsets],
            keep=[(action, ""), *(("offset", offset) for offset in offsets)],
            back=request.get_full_path(),
        )

    def _carry_out(self, request: HttpRequest, retry: bool, offsets: list[int] | None) -> None:
        service, user = _filters(request)

        async def act(broker: Broker) -> tuple[list[int], list[int], list[str]]:
            chosen = offsets
            if chosen is None:
                letters, _ = await oldest(broker, service, limit=AT_ONCE, user=user)
                chosen = [letter.offset for letter in letters]
            return await _act_on_each(broker, retry, chosen)

        outcome = carry_out(request, act)
        if outcome is None:
            return
        done, perhaps, problems = outcome
        for text in problems[:SHOWN]:
            messages.error(request, text)
        flag, what = (CHANGE, "put back into the queue") if retry else (DELETION, "purged")
        if perhaps:
            entries = [DeadLetterEntry(pk=offset) for offset in perhaps]
            log(request, entries, f"Perhaps {what}; not confirmed by the broker.")
        if done:
            entries = [DeadLetterEntry(pk=offset) for offset in done]
            log(request, entries, f"{what.capitalize()}.", flag)
            messages.success(request, f"{len(done)} dead letter(s) {what}.")

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        """Show one dead letter with its traceback."""
        self.require_view(request)
        offset = _offset(object_id)
        if offset is None:
            raise Http404
        answers = ask(dead_letter=lambda broker: _find(broker, offset))
        letter: DeadLetter | None = answers["dead_letter"]
        if letter is None and not answers.problems:
            raise Http404
        return render(
            self,
            request,
            f"{TEMPLATES}/detail.html",
            f"Dead letter {offset}",
            {
                "letter": letter,
                "offset": offset,
                "payload": letter.payload.decode("utf-8", "backslashreplace") if letter else "",
                **letter_rights(self.admin_site, request),
            },
            problems=answers.problems,
        )
