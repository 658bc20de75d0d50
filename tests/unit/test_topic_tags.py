"""The template tag that writes tokens for topics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Template

from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.topics.tokens import read_token

ANN = Inbox("chat", "ann")


def render(tag: str, **context: Any) -> str:
    return Template("{% load wsgateway %}{% " + tag + " %}").render(Context(context))


def request(user: Any) -> SimpleNamespace:
    return SimpleNamespace(user=user)


def test_token_is_for_the_user_of_the_request() -> None:
    ann = get_user_model()(username="ann")
    text = render('wsgateway_topic_token "room" pk access="write"', request=request(ann), pk=42)
    grant = read_token(text, Topic("room", "42"), ANN)
    assert grant is not None
    assert grant.access == "write"
    assert read_token(text, Topic("room", "42"), Inbox("chat", "bob")) is None


def test_token_for_somebody_else() -> None:
    text = render('wsgateway_topic_token "room" "42" user="ann"')
    grant = read_token(text, Topic("room", "42"), ANN)
    assert grant is not None
    assert grant.access == "read"


def test_visitor_gets_no_token() -> None:
    assert render('wsgateway_topic_token "room" 42', request=request(AnonymousUser())) == ""


def test_page_without_a_request_is_told_what_to_add() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"context_processors\.request"):
        render('wsgateway_topic_token "room" 42')


def test_resolver_names_the_user(settings: Any) -> None:
    settings.WSGATEWAY_IDENTITY = ["tests.unit.test_topic_tags.ByEmail"]
    ann = get_user_model()(username="x", email="ann")
    text = render('wsgateway_topic_token "room" "42"', request=request(ann))
    assert read_token(text, Topic("room", "42"), ANN) is not None


class ByEmail:
    """Names users by their address."""

    def user_name(self, user: Any) -> str:
        return str(user.email)
