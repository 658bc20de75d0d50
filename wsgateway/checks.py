"""System checks: every unsafe or impossible setting, each with what to do about it.

E is an error, W a warning. Those from 100 on appear with ``check --deploy`` only.
``docs/errors.md`` is checked against them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import check_password
from django.core.checks import CheckMessage, Error, Warning
from django.db import DatabaseError, router
from django.utils.module_loading import import_string

from wsgateway.asgi import Application
from wsgateway.broker.addresses import Address
from wsgateway.conf import SETTINGS, settings
from wsgateway.declared import ANY, declared_services
from wsgateway.exceptions import NameRefused
from wsgateway.logins import user_models
from wsgateway.services.registry import discover
from wsgateway.subjects import Subjects

__all__ = ["CHECKS", "DATABASE_CHECKS", "DEPLOY_CHECKS"]

Check = Callable[..., list[CheckMessage]]

FILES = ("NATS_CREDENTIALS", "NATS_NKEY_SEED", "NATS_TLS_CA", "NATS_TLS_CERT", "NATS_TLS_KEY")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PLAIN_COOKIES = "wsgateway.identity.CookieIdentity"


def _possible(*names: str) -> bool:
    """Say whether these settings can be read; `check_values` reports the others."""
    return not any(SETTINGS[name].problem() for name in names)


def check_names(**kwargs: Any) -> list[CheckMessage]:
    """E001: a ``WSGATEWAY_…`` name that does not exist, so that a typo has no silent effect."""
    found: list[CheckMessage] = []
    for name in settings.names_set():
        if name in SETTINGS:
            continue
        near = difflib.get_close_matches(_bare(name), map(_bare, SETTINGS), n=1)
        hint = (
            f"Did you mean WSGATEWAY_{near[0]}?" if near else "docs/settings.md lists all settings."
        )
        found.append(Error(f"Unknown setting {name}.", hint=hint, id="wsgateway.E001"))
    return found


def _bare(name: str) -> str:
    return name.removeprefix("WSGATEWAY_")


def check_values(**kwargs: Any) -> list[CheckMessage]:
    """E002: a value that is impossible."""
    found: list[CheckMessage] = [
        Error(f"{problem}.", hint=f"{setting.doc}.", id="wsgateway.E002")
        for setting in SETTINGS.values()
        if (problem := setting.problem())
    ]
    if _possible("WSGATEWAY_PREFIX"):
        try:
            Subjects(settings.PREFIX)
        except NameRefused as exc:
            hint = "For example 'ws' or 'acme.ws'."
            found.append(Error(f"WSGATEWAY_PREFIX: {exc}.", hint=hint, id="wsgateway.E002"))
    return found


def check_resolvers(**kwargs: Any) -> list[CheckMessage]:
    """E003: a resolver that cannot be imported, or is none."""
    if not _possible("WSGATEWAY_IDENTITY"):
        return []
    return [
        Error(
            f"WSGATEWAY_IDENTITY names {path!r}: {problem}.",
            hint="List dotted paths of classes with an async method resolve(scope).",
            id="wsgateway.E003",
        )
        for path in settings.IDENTITY
        if (problem := _resolver_problem(path))
    ]


def _resolver_problem(path: str) -> str | None:
    try:
        resolver = import_string(path)
    except ImportError as exc:
        return str(exc)
    if not isinstance(resolver, type):
        return "it is not a class"
    return None if callable(getattr(resolver, "resolve", None)) else "it has no method resolve"


def check_user_names(**kwargs: Any) -> list[CheckMessage]:
    """W005: a resolver that names users in its own way, but finds them as another one does."""
    if not _possible("WSGATEWAY_IDENTITY"):
        return []
    return [
        Warning(
            f"{path!r} in WSGATEWAY_IDENTITY overrides user_name, but not get_user.",
            hint="Add get_user(name), the inverse: without it, message.user finds nobody.",
            id="wsgateway.W005",
        )
        for path in settings.IDENTITY
        if not _resolver_problem(path) and _finds_otherwise(import_string(path))
    ]


def _finds_otherwise(resolver: type) -> bool:
    for each in resolver.__mro__:
        if "get_user" in vars(each):
            return False
        if "user_name" in vars(each):
            return hasattr(resolver, "get_user")
    return False


def check_files(**kwargs: Any) -> list[CheckMessage]:
    """E004: a key or certificate that cannot be read; E005: a certificate without its pair."""
    if not _possible(*(f"WSGATEWAY_{name}" for name in FILES)):
        return []
    found: list[CheckMessage] = []
    for name in FILES:
        path = getattr(settings, name)
        if path and not _readable(path):
            found.append(
                Error(
                    f"WSGATEWAY_{name} is {path!r}, which cannot be read.",
                    hint="Give the path of a file that the server's user may read.",
                    id="wsgateway.E004",
                )
            )
    if settings.NATS_TLS_KEY and not settings.NATS_TLS_CERT:
        found.append(
            Error(
                "WSGATEWAY_NATS_TLS_KEY is set without WSGATEWAY_NATS_TLS_CERT.",
                hint="Set both, or neither.",
                id="wsgateway.E005",
            )
        )
    return found


def _readable(path: str) -> bool:
    try:
        with Path(path).open("rb"):
            return True
    except OSError:
        return False


def check_urls(**kwargs: Any) -> list[CheckMessage]:
    """E006: an entry of NATS_BROKER_URL that is not the URL of a NATS server."""
    if not _possible("NATS_BROKER_URL"):
        return []
    return [
        Error(
            f"NATS_BROKER_URL has an entry that is not the URL of a NATS server: {problem}.",
            hint="Use nats://host:4222 or tls://host:4222; separate several by commas. "
            "Percent-encode special characters in a password (, is %2C, / is %2F).",
            id="wsgateway.E006",
        )
        for url in _urls()
        if (problem := _url_problem(url))
    ]


def _urls() -> list[str]:
    return [url.strip() for url in settings.URL.split(",") if url.strip()]


def _url_problem(url: str) -> str | None:
    """Return what is wrong with *url*, without the password that it may hold."""
    try:
        Address.parse(url)
    except ValueError as exc:
        return str(exc)
    return None


def check_apps(**kwargs: Any) -> list[CheckMessage]:
    """W001, W002: without these ``runserver`` and ``runworker`` serve no websockets."""
    found: list[CheckMessage] = []
    if not settings.is_installed("channels"):
        found.append(
            Warning(
                "'channels' is not in INSTALLED_APPS.",
                hint="Add it; the gateway is a Channels consumer.",
                id="wsgateway.W001",
            )
        )
    if settings.is_installed("daphne") and not settings.asgi_application:
        found.append(
            Warning(
                "ASGI_APPLICATION is not set.",
                hint="Name the application whose websockets wsgateway.routing serves.",
                id="wsgateway.W002",
            )
        )
    return found


def check_entry_point(**kwargs: Any) -> list[CheckMessage]:
    """W003: another outermost application than ours, which middleware can hide from the gateway."""
    path = settings.asgi_application
    if not path:
        return []
    try:
        found = import_string(path)
    except (Exception, SystemExit):  # the server that loads it says so, and better
        return []
    if isinstance(found, Application):
        return []
    return [
        Warning(
            f"ASGI_APPLICATION is {path!r}, which wsgateway.asgi.application() did not make.",
            hint="Middleware that wraps send then hides the server's socket from the gateway. "
            "Use wsgateway.asgi.application(http=..., websocket=...) in asgi.py.",
            id="wsgateway.W003",
        )
    ]


def check_duplicate_window(**kwargs: Any) -> list[CheckMessage]:
    """W006: ids forgotten early in a stream; W007: ids forgotten while a message is retried."""
    names = [f"WSGATEWAY_{family}_MAX_AGE" for family in ("INBOX", "SEND", "DEAD", "CURSOR")]
    if not _possible("WSGATEWAY_DUPLICATE_WINDOW", "WSGATEWAY_PUBLISH_TIMEOUT", *names):
        return []
    window = settings.DUPLICATE_WINDOW
    ages = [getattr(settings, _bare(name)) for name in names]
    found: list[CheckMessage] = [
        Warning(
            f"WSGATEWAY_DUPLICATE_WINDOW is {window:g} s, but {name} is {age:g} s: that stream "
            f"remembers message ids for {age:g} s only.",
            hint=f"Lower WSGATEWAY_DUPLICATE_WINDOW, or raise {name}.",
            id="wsgateway.W006",
        )
        for name, age in zip(names, ages, strict=True)
        if age < window
    ]
    shortest = min(window, *ages)
    if shortest <= settings.PUBLISH_TIMEOUT:
        found.append(
            Warning(
                f"Message ids are remembered for {shortest:g} s, but publishing is retried for "
                f"{settings.PUBLISH_TIMEOUT:g} s: a late retry may be stored twice.",
                hint="Make WSGATEWAY_DUPLICATE_WINDOW, and the MAX_AGE of every stream, longer "
                "than WSGATEWAY_PUBLISH_TIMEOUT.",
                id="wsgateway.W007",
            )
        )
    return found


def check_production_broker(**kwargs: Any) -> list[CheckMessage]:
    """E101, E102, W103: where messages go in production."""
    if not _possible("PUBSUB_BROKER", "NATS_BROKER_URL", "WSGATEWAY_STORAGE"):
        return []
    if settings.BROKER == "memory":
        return [
            Error(
                "PUBSUB_BROKER is 'memory': one process, and nothing is kept.",
                hint="Set PUBSUB_BROKER to 'nats'.",
                id="wsgateway.E101",
            )
        ]
    found: list[CheckMessage] = []
    if not settings.URL.strip():
        found.append(
            Error(
                "NATS_BROKER_URL is empty; the embedded server is for development only.",
                hint="Set it to your NATS servers, for example 'tls://nats.example.com:4222'.",
                id="wsgateway.E102",
            )
        )
    if settings.STORAGE == "memory":
        found.append(
            Warning(
                "WSGATEWAY_STORAGE is 'memory': messages do not survive a restart of NATS.",
                hint="Set it to 'file'.",
                id="wsgateway.W103",
            )
        )
    return found


def check_production_transport(**kwargs: Any) -> list[CheckMessage]:
    """W104: messages that cross a network in clear."""
    if not _possible("NATS_BROKER_URL", "WSGATEWAY_NATS_TLS_CA", "WSGATEWAY_NATS_TLS_CERT"):
        return []
    if settings.NATS_TLS_CA or settings.NATS_TLS_CERT:
        return []
    hosts = [_plain_host(url) for url in _urls() if not _url_problem(url)]
    far = sorted({host for host in hosts if host})
    if not far:
        return []
    return [
        Warning(
            f"NATS_BROKER_URL reaches {', '.join(far)} without TLS.",
            hint="Use tls:// URLs, or silence this where the network itself is encrypted.",
            id="wsgateway.W104",
        )
    ]


def _plain_host(url: str) -> str | None:
    address = Address.parse(url)
    return None if address.tls or address.host in LOOPBACK else address.host


def check_production_replicas(**kwargs: Any) -> list[CheckMessage]:
    """W105: several servers, but one copy of each message."""
    if not _possible("NATS_BROKER_URL", "WSGATEWAY_REPLICAS"):
        return []
    if len(_urls()) < 3 or settings.REPLICAS > 1:
        return []
    return [
        Warning(
            f"NATS_BROKER_URL lists {len(_urls())} servers, but WSGATEWAY_REPLICAS is 1.",
            hint="Set WSGATEWAY_REPLICAS to 3, so that no message depends on one server.",
            id="wsgateway.W105",
        )
    ]


def check_production_identity(**kwargs: Any) -> list[CheckMessage]:
    """E106: identities that anybody can claim."""
    if not _possible("WSGATEWAY_IDENTITY") or not any(map(_is_plain, settings.IDENTITY)):
        return []
    return [
        Error(
            "WSGATEWAY_IDENTITY holds CookieIdentity: everybody can read everybody's messages.",
            hint="Use SessionIdentity, SignedCookieIdentity or TokenIdentity.",
            id="wsgateway.E106",
        )
    ]


def _is_plain(path: str) -> bool:
    if path == PLAIN_COOKIES or _resolver_problem(path):
        return path == PLAIN_COOKIES
    return issubclass(import_string(path), import_string(PLAIN_COOKIES))


def check_production_origins(**kwargs: Any) -> list[CheckMessage]:
    """E107: pages of any site may open sockets with their visitors' cookies."""
    if not _possible("WSGATEWAY_ALLOWED_ORIGINS"):
        return []
    origins, name = settings.ALLOWED_ORIGINS, "WSGATEWAY_ALLOWED_ORIGINS"
    if origins is None:
        origins, name = settings.allowed_hosts, "ALLOWED_HOSTS"
    if "*" not in origins:
        return []
    return [
        Error(
            f"{name} holds '*': any web site may open sockets as its visitors.",
            hint="List your own origins in WSGATEWAY_ALLOWED_ORIGINS.",
            id="wsgateway.E107",
        )
    ]


def check_demo_users(databases: Collection[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """E108: the users that ``rungateway --demo`` creates, whose passwords are their names.

    Reads the database only if it is asked to: ``check --deploy --database default``.
    """
    from wsgateway.launcher import DEMO_USERS  # only for this: it loads the broker

    if not user_models():
        return []
    model = get_user_model()
    alias = router.db_for_read(model)
    if alias not in (databases or ()):
        return []
    named = {f"{model.USERNAME_FIELD}__in": list(DEMO_USERS)}
    try:
        users = list(model._default_manager.using(alias).filter(**named))
    except DatabaseError:  # there are no tables yet
        return []
    found = sorted(u.get_username() for u in users if check_password(u.get_username(), u.password))
    if not found:
        return []
    return [
        Error(
            f"The database has demo users whose passwords are their names: {', '.join(found)}.",
            hint="Delete them, or give them other passwords: manage.py changepassword NAME.",
            id="wsgateway.E108",
        )
    ]


def check_services(**kwargs: Any) -> list[CheckMessage]:
    """E002: a service that no stream can have; W004: one that no client may name."""
    if not _possible("WSGATEWAY_PREFIX", "WSGATEWAY_SERVICES", "WSGATEWAY_SERVICES_MODULE"):
        return []
    try:
        subjects = Subjects(settings.PREFIX)
    except NameRefused:
        return []
    declared = declared_services()
    found: list[CheckMessage] = []
    for service in sorted(declared.services):
        try:
            subjects.require_service(service)
        except NameRefused as exc:
            hint = "Services need a stream and a consumer of their own."
            found.append(Error(f"{exc}.", hint=hint, id="wsgateway.E002"))
    unlisted = sorted(set() if declared.is_open else discover().keys() - declared.services)
    if unlisted:
        found.append(
            Warning(
                f"WSGATEWAY_SERVICES does not list {', '.join(unlisted)}.",
                hint="Add the services that clients should reach: others get no messages.",
                id="wsgateway.W004",
            )
        )
    return found


def check_production_services(**kwargs: Any) -> list[CheckMessage]:
    """W109: clients may name any service, and all of them share one queue."""
    if not _possible("WSGATEWAY_SERVICES") or ANY not in (settings.SERVICES or ()):
        return []
    return [
        Warning(
            "WSGATEWAY_SERVICES is ['*']: one client can fill the queue of every service.",
            hint="List your services, or unset it if @service declares all of them.",
            id="wsgateway.W109",
        )
    ]


CHECKS: list[Check] = [
    check_names,
    check_values,
    check_resolvers,
    check_user_names,
    check_files,
    check_urls,
    check_apps,
    check_entry_point,
    check_services,
    check_duplicate_window,
]
DEPLOY_CHECKS: list[Check] = [
    check_production_broker,
    check_production_transport,
    check_production_replicas,
    check_production_identity,
    check_production_origins,
    check_production_services,
]
DATABASE_CHECKS: list[Check] = [check_demo_users]
"""Appear with ``check --deploy --database NAME`` only."""
