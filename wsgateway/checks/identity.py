"""WSGATEWAY_IDENTITY: who users are. WSGATEWAY_MAY_WATCH: whom they may watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.utils.module_loading import import_string

from wsgateway.checks.base import ended, possible
from wsgateway.conf import settings
from wsgateway.hooks import get_resolver
from wsgateway.identity import AnonymousIdentity, DrfIdentity, JwtIdentity, WebhookIdentity

__all__ = [
    "check_identity_webhook",
    "check_production_tokens",
    "check_resolvers",
    "check_strangers",
    "check_tokens",
    "check_user_names",
    "check_watching",
    "resolver_problem",
]

T = TypeVar("T")


def check_resolvers(**kwargs: Any) -> list[CheckMessage]:
    """E003: a resolver that cannot be imported, or is not one."""
    if not possible("WSGATEWAY_IDENTITY"):
        return []
    return [
        Error(
            ended(f"WSGATEWAY_IDENTITY names {path!r}: {problem}"),
            hint="List dotted paths of classes with a method resolve(scope), sync or async, "
            "and a constructor that needs no arguments.",
            id="wsgateway.E003",
        )
        for path in settings.IDENTITY
        if (problem := resolver_problem(path))
    ]


def resolver_problem(path: str) -> str | None:
    """Return why *path* is not a resolver; None if it is one."""
    try:
        resolver = import_string(path)
    except ImportError as exc:
        return str(exc)
    if not isinstance(resolver, type):
        return "it is not a class"
    if not callable(getattr(resolver, "resolve", None)):
        return "it has no method resolve"
    try:
        get_resolver(path)
    except DatabaseError:  # the tables do not exist yet
        return None
    except Exception as exc:
        return f"it cannot be called without arguments: {type(exc).__name__}: {exc}"
    return None


def check_user_names(**kwargs: Any) -> list[CheckMessage]:
    """W005: a resolver that names users in its own way, but finds them as another one does."""
    if not possible("WSGATEWAY_IDENTITY"):
        return []
    return [
        Warning(
            f"{path!r} in WSGATEWAY_IDENTITY overrides user_name, but not get_user.",
            hint="Add get_user(name), the inverse: without it, message.user finds no one.",
            id="wsgateway.W005",
        )
        for path in settings.IDENTITY
        if not resolver_problem(path) and _finds_otherwise(import_string(path))
    ]


def _finds_otherwise(resolver: type) -> bool:
    for each in resolver.__mro__:
        if "get_user" in vars(each):
            return False
        if "user_name" in vars(each):
            return hasattr(resolver, "get_user")
    return False


def check_strangers(**kwargs: Any) -> list[CheckMessage]:
    """W018: resolvers that come too late, because one before them lets in everyone."""
    found = [path for path, _ in _resolvers_of(AnonymousIdentity)]
    if not found or found[-1] == settings.IDENTITY[-1]:
        return []
    return [
        Warning(
            f"WSGATEWAY_IDENTITY lists resolvers after {found[-1]!r}, which lets in every reader "
            "of server-sent events. For those, they are never asked.",
            hint="List it last.",
            id="wsgateway.W018",
        )
    ]


def check_tokens(**kwargs: Any) -> list[CheckMessage]:
    """E011: JSON web tokens that cannot be verified; E012: REST framework is not there."""
    found: list[CheckMessage] = []
    for path, resolver in _resolvers_of(JwtIdentity):
        try:
            flaws = resolver.config().flaws()
        except ImproperlyConfigured:  # a setting that `check_values` reports
            continue
        hint = "Until you do, the gateway refuses all sockets that send a token."
        found += [Error(ended(f"{path}: {flaw}"), hint=hint, id="wsgateway.E011") for flaw in flaws]
    if any(_resolvers_of(DrfIdentity)) and not settings.is_installed("rest_framework"):
        found.append(
            Error(
                "WSGATEWAY_IDENTITY holds DrfIdentity, but Django REST framework is not installed.",
                hint="Add 'rest_framework' to INSTALLED_APPS, or remove DrfIdentity.",
                id="wsgateway.E012",
            )
        )
    return found


def check_identity_webhook(**kwargs: Any) -> list[CheckMessage]:
    """E015: a resolver that asks a webhook, but none is set."""
    if not possible("WSGATEWAY_IDENTITY_WEBHOOK") or settings.IDENTITY_WEBHOOK:
        return []
    return [
        Error(
            f"WSGATEWAY_IDENTITY holds {path}, but WSGATEWAY_IDENTITY_WEBHOOK is empty.",
            hint="Set its url and secret, or remove the resolver.",
            id="wsgateway.E015",
        )
        for path, _ in _resolvers_of(WebhookIdentity)
    ]


def _resolvers_of(kind: type[T]) -> Iterator[tuple[str, T]]:
    if possible("WSGATEWAY_IDENTITY"):
        for path in settings.IDENTITY:
            if not resolver_problem(path) and isinstance(found := get_resolver(path), kind):
                yield path, found


def check_production_tokens(**kwargs: Any) -> list[CheckMessage]:
    """W122: keys that come without TLS; W123: tokens that were made for something else."""
    found: list[CheckMessage] = []
    for path, resolver in _resolvers_of(JwtIdentity):
        try:
            config = resolver.config()
        except ImproperlyConfigured:
            continue
        if urlsplit(config.jwks_url).scheme == "http":
            found.append(
                Warning(
                    f"{path} fetches its keys without TLS: {config.jwks_url!r}.",
                    hint="Use https, or silence this where the network itself is encrypted.",
                    id="wsgateway.W122",
                )
            )
        if not config.audience and not config.issuer:
            found.append(
                Warning(
                    f"{path} accepts every token that was signed with its keys, whatever it is "
                    "for.",
                    hint="Set WSGATEWAY_JWT_AUDIENCE or WSGATEWAY_JWT_ISSUER, or silence this if "
                    "the keys sign nothing else.",
                    id="wsgateway.W123",
                )
            )
    return found


def check_watching(**kwargs: Any) -> list[CheckMessage]:
    """E009: WSGATEWAY_MAY_WATCH is not a function."""
    path = settings.MAY_WATCH if possible("WSGATEWAY_MAY_WATCH") else ""
    problem = _function_problem(path) if path else None
    if problem is None:
        return []
    return [
        Error(
            ended(f"WSGATEWAY_MAY_WATCH names {path!r}: {problem}"),
            hint="Name a function that takes an identity, a service and a user's name, sync or "
            "async, for example 'shop.presence.may_watch'.",
            id="wsgateway.E009",
        )
    ]


def _function_problem(path: str) -> str | None:
    try:
        found = import_string(path)
    except ImportError as exc:
        return str(exc)
    return None if callable(found) and not isinstance(found, type) else "it is not a function"
