"""WSGATEWAY_SERVICES, WSGATEWAY_TOPICS, and what ``@service`` and ``@topic`` declare."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from wsgateway import declared
from wsgateway.checks.base import ended, possible
from wsgateway.conf import settings
from wsgateway.declared import ANY, declared_services, discover, handled_services
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Subjects
from wsgateway.services.registry import service_of_topics

__all__ = [
    "check_production_services",
    "check_services",
    "check_topic_handlers",
    "check_topic_limits",
    "check_topic_sockets",
]

DECLARING = (
    "WSGATEWAY_SERVICES",
    "WSGATEWAY_SERVICES_MODULE",
    "WSGATEWAY_WEBHOOKS",
    "WSGATEWAY_BRIDGES",
)
"""The settings that say which services there are."""


def check_services(**kwargs: Any) -> list[CheckMessage]:
    """E002: a service that no stream can have; E010: one of topics; W004: one nobody may name."""
    if not possible("WSGATEWAY_PREFIX", *DECLARING):
        return []
    try:
        subjects = Subjects(settings.PREFIX)
    except NameRefused:
        return []
    ours = declared_services()
    found: list[CheckMessage] = []
    for service in sorted(ours.services):
        try:
            subjects.require_service(service)
        except NameRefused as exc:
            hint = (
                "Choose a shorter name: NATS has a stream and a consumer that are named after it."
            )
            found.append(Error(ended(str(exc)), hint=hint, id="wsgateway.E002"))
    both = sorted(ours.services & (ours.topics | ours.casts))
    if both:
        found.append(
            Error(
                f"WSGATEWAY_SERVICES lists {', '.join(both)}, which @topic declares.",
                hint="Remove it there, or rename the topics: a service has users or topics. "
                "Clients reach topics without that setting.",
                id="wsgateway.E010",
            )
        )
    unlisted = sorted(set() if ours.is_open else handled_services() - ours.services)
    if unlisted:
        found.append(
            Warning(
                f"WSGATEWAY_SERVICES does not list {', '.join(unlisted)}.",
                hint="Add the services that clients should reach: others get no messages.",
                id="wsgateway.W004",
            )
        )
    return found


def check_topic_handlers(**kwargs: Any) -> list[CheckMessage]:
    """E013: a handler of topics that cannot run; W015: clients may write, but nothing takes it."""
    if not possible("WSGATEWAY_PREFIX", "WSGATEWAY_SERVICES_MODULE"):
        return []
    discover()
    found: list[CheckMessage] = []
    for name, topics in sorted(declared.topics.items()):
        if topics.handler is not None:
            try:
                service_of_topics(topics)
            except (TypeError, ValueError) as exc:
                text = ended(f"The handler of topics of {name!r} cannot run: {exc}")
                hint = "Correct the method handle(), or the options of @topic."
                found.append(Error(text, hint=hint, id="wsgateway.E013"))
        elif not topics.is_writable and _mentions_write(topics.allow):
            found.append(
                Warning(
                    f"{declared.source_of(topics.allow)} lets clients write topics of {name!r}, "
                    "but nothing takes what they send.",
                    hint="Give the class that @topic decorates a method handle(self, message); "
                    "or pass direct=True to store it in the topic, or queue=True if a program "
                    'in another language handles it. Otherwise return "read".',
                    id="wsgateway.W015",
                )
            )
    return found


def _mentions_write(allow: Any) -> bool:
    """Say whether the code of *allow* itself can return ``"write"``."""
    function = inspect.unwrap(allow)
    if not inspect.isroutine(function):
        function = type(function).__call__
    codes = [getattr(function, "__code__", None)]
    for code in codes:
        constants = code.co_consts if code is not None else ()
        if "write" in constants:
            return True
        codes += [each for each in constants if inspect.iscode(each)]
    return False


def check_topic_sockets(**kwargs: Any) -> list[CheckMessage]:
    """W017: topics, but no service that a client could connect to."""
    if not possible(*DECLARING):
        return []
    known = declared_services()
    names = ", ".join(sorted(known.topics | known.casts))
    if not names or known.services or known.is_open:
        return []
    text = f"@topic declares topics of {names}, but no service has users who could read them."
    hint = (
        "Clients read topics over a socket of a service that has users. Declare one with "
        '@service, or by its name: WSGATEWAY_SERVICES = ["chat"]. Then they connect to '
        "/ws/chat/. Silence this check if another project declares it."
    )
    return [Warning(text, hint=hint, id="wsgateway.W017")]


def check_topic_limits(**kwargs: Any) -> list[CheckMessage]:
    """W016: limits of topics that nobody declares."""
    if not possible("WSGATEWAY_TOPICS", *DECLARING):
        return []
    known = declared_services()
    ephemeral = sorted(settings.TOPICS.keys() & known.casts)
    unknown = sorted(settings.TOPICS.keys() - known.topics - known.casts)
    nearest = [near for each in unknown for near in get_close_matches(each, known.topics, n=1)]
    correct = f"Did you mean {', '.join(nearest)}?" if nearest else "Correct the name."
    correct += " Limits belong to a service of topics, not to one topic. Or remove them."
    found: list[CheckMessage] = []
    for services, problem, cure in (
        (unknown, "which no @topic declares", correct),
        (ephemeral, "whose topics are ephemeral", "Remove their limits: nothing is stored."),
    ):
        if services:
            names = ", ".join(services)
            text = f"WSGATEWAY_TOPICS has limits of {names}, {problem}."
            found.append(Warning(text, hint=cure, id="wsgateway.W016"))
    return found


def check_production_services(**kwargs: Any) -> list[CheckMessage]:
    """W109: clients may name any service, and all of them share one queue."""
    if not possible("WSGATEWAY_SERVICES") or ANY not in (settings.SERVICES or ()):
        return []
    return [
        Warning(
            "WSGATEWAY_SERVICES is ['*']: one client can fill the queue of every service.",
            hint="List your services, or unset it if @service declares all of them.",
            id="wsgateway.W109",
        )
    ]
