"""The demonstration: a logged-in user's inbox in the browser, and a form to publish."""

from __future__ import annotations

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_POST, require_safe

from wsgateway.broker import get_broker
from wsgateway.broker.base import Receipt
from wsgateway.conf import settings
from wsgateway.exceptions import WsGatewayError
from wsgateway.subjects import MAX_NAME_BYTES, Inbox, Subjects

__all__ = ["demo", "publish"]

SERVICE = "demo"


class PublishForm(forms.Form):
    """A message to one user of the service ``demo``."""

    user = forms.CharField(
        label="To user", max_length=MAX_NAME_BYTES, widget=forms.TextInput({"autocomplete": "off"})
    )
    text = forms.CharField(
        label="Message", max_length=10_000, widget=forms.TextInput({"autocomplete": "off"})
    )


def _may_publish(user: object) -> bool:
    """Say whether *user* may write to anybody: staff; in development everybody."""
    if not getattr(user, "is_authenticated", False):
        return False
    return settings.debug or bool(getattr(user, "is_staff", False))


@require_safe
@ensure_csrf_cookie
def demo(request: HttpRequest) -> HttpResponse:
    """Show the inbox of the logged-in user, or how to log in."""
    name = request.user.get_username()
    form = (
        PublishForm(initial={"user": name}, label_suffix="") if _may_publish(request.user) else None
    )
    context = {"service": SERVICE, "name": name, "form": form, "debug": settings.debug}
    if name:
        context["subject"] = Subjects(settings.PREFIX).all_of("send", SERVICE)
        context["inbox"] = Subjects(settings.PREFIX).all_of("recv", SERVICE)
    return render(request, "wsgateway/demo.html", context)


@require_POST
async def publish(request: HttpRequest) -> HttpResponseBase:
    """Publish the form's message; answer JSON to scripts, a redirect to the page otherwise."""
    if not _may_publish(await request.auser()):
        return JsonResponse({"error": "only staff may publish; log in"}, status=403)
    form = PublishForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"error": "give a user and a message"}, status=400)
    user = form.cleaned_data["user"]
    try:
        receipt = await _store(user, form.cleaned_data["text"])
    except WsGatewayError as exc:
        return JsonResponse({"error": str(exc)}, status=503)
    if "application/json" in request.headers.get("accept", ""):
        return JsonResponse({"user": user, "offset": receipt.offset})
    messages.success(request, f"Stored for {user} at offset {receipt.offset}.")
    return redirect("wsgateway:demo")


async def _store(user: str, text: str) -> Receipt:
    broker = get_broker()
    await broker.open()
    await broker.wait_ready()
    return await broker.publish(Inbox(SERVICE, user), text.encode(), kind="text")
