"""Environment variables to settings. Pure: the environment is an argument."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from wsgateway.conf import SETTINGS, misspelt_setting

__all__ = ["choice", "flag", "gateway_settings", "items", "number", "required", "site_path"]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


def flag(environ: Mapping[str, str], name: str, default: bool) -> bool:
    """Return a yes-or-no variable."""
    if name not in environ:
        return default
    value = environ[name].strip().lower()
    if value not in _TRUE | _FALSE:
        raise ImproperlyConfigured(f"{name} is {environ[name]!r} in the environment; use 1 or 0")
    return value in _TRUE


def choice(environ: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """Return a variable that is one of *choices*, of which the first is the default."""
    value = environ.get(name) or choices[0]
    if value not in choices:
        known = ", ".join(choices)
        raise ImproperlyConfigured(f"{name} is {value!r} in the environment; use one of {known}")
    return value


def items(environ: Mapping[str, str], name: str, default: str = "") -> list[str]:
    """Return a comma-separated variable as a list; spaces around items do not count."""
    return [item.strip() for item in environ.get(name, default).split(",") if item.strip()]


def number(environ: Mapping[str, str], name: str, default: int) -> int:
    """Return a whole number."""
    return int(_convert(name, environ.get(name, str(default)), (int,)))


def site_path(environ: Mapping[str, str], name: str) -> str | None:
    """Return a path without a slash at its end; None if it is empty, or only a slash."""
    path = environ.get(name, "").strip("/ ")
    return f"/{path}" if path else None


def required(environ: Mapping[str, str], name: str, cure: str) -> str:
    """Return a variable that must be set; *cure* says how."""
    if not environ.get(name):
        raise ImproperlyConfigured(f"{name} is not set in the environment; {cure}")
    return environ[name]


def gateway_settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return every wsgateway setting that *environ* sets, each as its own type.

    An unknown ``WSGATEWAY_…`` name, and one that resembles a setting, are kept as they are, for
    the system checks E001 and W013 to report.
    """
    names = [
        name
        for name in environ
        if name in SETTINGS or name.startswith("WSGATEWAY_") or misspelt_setting(name)
    ]
    kinds = {name: SETTINGS[name].kind if name in SETTINGS else (str,) for name in names}
    return {name: _convert(name, environ[name], kinds[name]) for name in names}


def _convert(name: str, text: str, kinds: tuple[type, ...]) -> Any:
    if list in kinds:
        return [item.strip() for item in text.split(",") if item.strip()]
    if bool in kinds:
        return flag({name: text}, name, False)
    kind = kinds[0]
    try:
        return json.loads(text) if kind is dict else kind(text)
    except ValueError as exc:
        if kind is dict:  # the text may hold a secret
            raise ImproperlyConfigured(f"{name} in the environment is not JSON: {exc}") from None
        raise ImproperlyConfigured(
            f"{name} is {text!r} in the environment, but must be of type {kind.__name__}"
        ) from exc
