"""Settings on their own: names and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from wsgateway.checks.base import ended, possible
from wsgateway.conf import SETTINGS, misspelt_setting, nearest_setting, settings
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Subjects
from wsgateway.retention import retention_of

__all__ = [
    "check_duplicate_window",
    "check_files",
    "check_misspelt_names",
    "check_names",
    "check_values",
    "readable",
]

FILES = ("NATS_CREDENTIALS", "NATS_NKEY_SEED", "NATS_TLS_CA", "NATS_TLS_CERT", "NATS_TLS_KEY")


def check_names(**kwargs: Any) -> list[CheckMessage]:
    """E001: a ``WSGATEWAY_…`` name that does not exist, so that a typo has no silent effect."""
    return [
        Error(
            f"Unknown setting {name}.",
            hint=f"Did you mean {near}?"
            if near
            else "docs/reference/settings.md lists all settings.",
            id="wsgateway.E001",
        )
        for name in settings.names_set()
        if name.startswith("WSGATEWAY_") and name not in SETTINGS
        for near in [nearest_setting(name)]
    ]


def check_misspelt_names(**kwargs: Any) -> list[CheckMessage]:
    """W013: a name that resembles one of ours, which is itself not set, or empty."""
    return [
        Warning(
            f"{name} is not a setting of wsgateway.",
            hint=f"Did you mean {meant}? Silence this if the setting is another app's.",
            id="wsgateway.W013",
        )
        for name in settings.names_set()
        if (meant := misspelt_setting(name)) and not settings.is_set(meant)
    ]


def check_values(**kwargs: Any) -> list[CheckMessage]:
    """E002: a value that is impossible."""
    found: list[CheckMessage] = [
        Error(ended(problem), hint=setting.cure(), id="wsgateway.E002")
        for setting in SETTINGS.values()
        if (problem := setting.problem())
    ]
    if possible("WSGATEWAY_PREFIX"):
        try:
            Subjects(settings.PREFIX)
        except NameRefused as exc:
            hint = "For example 'ws' or 'acme.ws'."
            found.append(Error(ended(f"WSGATEWAY_PREFIX: {exc}"), hint=hint, id="wsgateway.E002"))
    return found


def check_files(**kwargs: Any) -> list[CheckMessage]:
    """E004: a key or certificate that cannot be read; E005: a certificate without its pair."""
    if not possible(*(f"WSGATEWAY_{name}" for name in FILES)):
        return []
    found: list[CheckMessage] = []
    for name in FILES:
        path = getattr(settings, name)
        if path and not readable(path):
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


def readable(path: str) -> bool:
    """Say whether there is a file that can be read."""
    try:
        with Path(path).open("rb"):
            return True
    except (OSError, ValueError):  # no path has a zero byte
        return False


def check_duplicate_window(**kwargs: Any) -> list[CheckMessage]:
    """W006: ids forgotten early in a stream; W007: ids forgotten while a message is retried."""
    names = [f"WSGATEWAY_{family}_MAX_AGE" for family in ("INBOX", "SEND", "DEAD", "CURSOR")]
    others = ("WSGATEWAY_DUPLICATE_WINDOW", "WSGATEWAY_PUBLISH_TIMEOUT", "WSGATEWAY_TOPICS")
    if not possible(*others, *names):
        return []
    window = settings.DUPLICATE_WINDOW
    ages = [getattr(settings, name.removeprefix("WSGATEWAY_")) for name in names]
    for service in settings.TOPICS:
        names.append(f"WSGATEWAY_TOPICS[{service!r}]['max_age']")
        ages.append(retention_of(service, settings.TOPICS).max_age)
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
