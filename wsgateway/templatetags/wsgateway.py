"""What pages need to use the gateway: ``{% load wsgateway %}``."""

from __future__ import annotations

from typing import Any

from django import template
from django.core.exceptions import ImproperlyConfigured
from django.template import Context

from wsgateway.protocol.endpoint import Access
from wsgateway.topics.tokens import token

__all__ = ["wsgateway_topic_token"]

register = template.Library()


@register.simple_tag(takes_context=True)
def wsgateway_topic_token(
    context: Context, service: str, name: Any, user: Any = None, access: Access = "read"
) -> str:
    """Write a token that lets the page's user subscribe to a topic; see `wsgateway.topics.token`.

    ::

        {% wsgateway_topic_token "room" room.pk access="write" %}

    Args:
        context: Has the request; without *user*, the token is for the request's user.
        service: The topic's service.
        name: The topic's name; written as text.
        user: Whom the token serves instead.
        access: ``"read"`` or ``"write"``.

    Returns:
        Nothing for a visitor who is not logged in.
    """
    if user is None:
        if "request" not in context:
            raise ImproperlyConfigured(
                "wsgateway_topic_token finds no request; add the context processor "
                "'django.template.context_processors.request', or pass user=…"
            )
        user = context["request"].user
    if not getattr(user, "is_authenticated", True):
        return ""
    return token(service, str(name), user=user, access=access)
