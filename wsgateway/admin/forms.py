"""The forms on the page of an inbox."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django import forms
from django.utils import timezone

from wsgateway.broker.messages import MAX_TTL, MIN_TTL
from wsgateway.conf import settings
from wsgateway.protocol import strict_json

__all__ = ["SendForm", "TimesForm"]


class SendForm(forms.Form):
    """A message to send. Show it after `offer`."""

    service = forms.CharField(max_length=255, widget=forms.Select)
    kind = forms.ChoiceField(
        choices=[("text", "Text"), ("json", "JSON")],
        initial="text",
        help_text="JSON is checked before it is sent, and sent as you write it.",
    )
    content = forms.CharField(
        label="Message", strip=False, widget=forms.Textarea(attrs={"rows": 4, "cols": 60})
    )
    ttl = forms.FloatField(
        label="Lifetime in seconds",
        required=False,
        min_value=MIN_TTL,
        max_value=MAX_TTL,
        help_text="If empty, as long as the inbox keeps messages.",
    )
    msg_id = forms.RegexField(
        r"\A[\w.-]{1,64}\Z",
        widget=forms.HiddenInput,
        initial=lambda: f"admin.{secrets.token_hex(12)}",
    )
    """Makes sending the same form twice, with a double click, send one message."""

    def offer(self, services: Sequence[str], selected: str | None) -> None:
        """Let one of *services* be chosen, and propose *selected*."""
        field = self.fields["service"]
        if len(services) == 1:
            field.widget = forms.HiddenInput()
        elif isinstance(field.widget, forms.Select):
            field.widget.choices = [(service, service) for service in services]
        field.initial = selected

    def clean_content(self) -> str:
        """Undo what browsers do to line breaks, and refuse what is too big."""
        content: str = self.cleaned_data["content"].replace("\r\n", "\n")
        size, limit = len(content.encode()), settings.MAX_MESSAGE_SIZE
        if size > limit:
            raise forms.ValidationError(
                f"This message has {size:,} bytes; WSGATEWAY_MAX_MESSAGE_SIZE is {limit:,} bytes."
            )
        return content

    def clean(self) -> dict[str, Any]:
        """Refuse what is not JSON if that is what it should be."""
        data = super().clean() or {}
        if data.get("kind") == "json" and "content" in data:
            try:
                strict_json.loads(data["content"])
            except (ValueError, RecursionError) as exc:
                self.add_error("content", f"This is not JSON: {exc}.")
        return data


class TimesForm(forms.Form):
    """Which messages to show: those stored between two moments."""

    since = forms.DateTimeField(
        label="From", required=False, widget=forms.DateTimeInput(attrs={"type": "datetime-local"})
    )
    until = forms.DateTimeField(
        label="To", required=False, widget=forms.DateTimeInput(attrs={"type": "datetime-local"})
    )

    def clean_since(self) -> datetime | None:
        """Return a moment, with USE_TZ and without."""
        return _aware(self.cleaned_data["since"])

    def clean_until(self) -> datetime | None:
        """The same."""
        return _aware(self.cleaned_data["until"])


def _aware(moment: datetime | None) -> datetime | None:
    return timezone.make_aware(moment) if moment and timezone.is_naive(moment) else moment
