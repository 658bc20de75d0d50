"""One setting: its default, its unit, which values are possible, what to do about others."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_network
from typing import Any, Generic, TypeVar, overload

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

__all__ = [
    "MAX_INT",
    "MAX_SECONDS",
    "PREFIX",
    "Group",
    "Setting",
    "are_names",
    "are_networks",
    "are_origins",
    "bytes_limit",
    "count",
    "network_flaws",
    "number_flaw",
    "options_flaws",
    "origin_flaws",
    "positive",
    "seconds",
    "text",
]

T = TypeVar("T")

PREFIX = "WSGATEWAY_"
_LINK = re.compile(r"\[[^]]*\]\(\.\./([^)#]+)[^)]*\)")
_PORT = re.compile(r"[\w.-]+:\d+/?$")
MAX_INT = 2**63 - 1
MAX_SECONDS = 9_000_000_000
"""NATS counts nanoseconds in 64 bits."""


class Group:
    """A heading in the list of settings, for the settings that follow it in their class."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.settings: list[Setting[Any]] = []

    def __set_name__(self, owner: type, attribute: str) -> None:
        members = list(vars(owner).values())
        for member in members[members.index(self) + 1 :]:
            if isinstance(member, Group):
                break
            if isinstance(member, Setting):
                self.settings.append(member)


class Setting(Generic[T]):
    """One setting.

    Args:
        default: Its value when the project does not set it.
        doc: What it does, in Markdown, without the full stop at the end.
        kind: Types that its value may have; also what an environment value is converted to.
        valid: Says whether a value is possible.
        want: What *valid* wants, for the error text.
        name: The name in Django's settings; None means ``WSGATEWAY_`` and the attribute's name.
        is_secret: Whether the value may hold a password, which no text may show.
        flaw: Returns what is wrong with a part of a value that is not *valid*, and how to write
            it; "" if *want* says enough.
        unit: What a number counts: ``seconds``, ``bytes``, or "" if *doc* says it.
    """

    def __init__(
        self,
        default: T,
        doc: str,
        *,
        kind: type | tuple[type, ...],
        valid: Callable[[Any], bool] = lambda value: True,
        want: str = "",
        name: str | None = None,
        is_secret: bool = False,
        flaw: Callable[[Any], str] = lambda value: "",
        unit: str = "",
    ) -> None:
        self.default = default
        self.doc = doc
        self.kind = kind if isinstance(kind, tuple) else (kind,)
        self.valid = valid
        self.want = want
        self.name = name or ""
        self.is_secret = is_secret
        self.flaw = flaw
        self.unit = unit
        self._value = default  # as it is set, once it was asked for: Django's own way is slow
        self._is_known = False

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.name = self.name or PREFIX + attribute
        setting_changed.connect(self._on_change)

    def problem(self) -> str | None:
        """Return what is wrong with the value that is set; None if it is possible."""
        value = getattr(django_settings, self.name, self.default)
        kinds = (*self.kind, int) if float in self.kind else self.kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in self.kind):
            names = " or ".join(kind.__name__ for kind in self.kind)
            want = self.want if list in self.kind else f"of type {names}"
            shown = f"of type {type(value).__name__}" if self.is_secret else repr(value)
            return f"{self.name} is {shown}, but must be {want}"
        if not self.valid(value):
            if flaw := self.flaw(value):
                return f"{self.name}: {flaw}"
            shown = "of another kind" if self.is_secret else repr(value)
            return f"{self.name} is {shown}, but must be {self.want}"
        return None

    def cure(self) -> str:
        """Return what to do about a value that has a `problem`; for a terminal, without links."""
        doc = _LINK.sub(r"docs/\1", self.doc)
        value = getattr(django_settings, self.name, self.default)
        number = next((kind for kind in (float, int) if kind in self.kind), None)
        if number and isinstance(value, str):
            of = f" of {self.unit}" if self.unit else ""
            return f"Convert it to a number{of}: {number.__name__}(…). {doc}."
        if list in self.kind and isinstance(value, str):
            return f"Write a list, with brackets: {value.split(',')!r}. {doc}."
        shown = f"{self.default!r} {self.unit}".rstrip()
        default = "" if self.is_secret else f" The default is {shown}."
        return f"{doc}.{default}"

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Setting[T] | T:
        if instance is None:
            return self
        if self._is_known:
            return self._value
        value: T = getattr(django_settings, self.name, self.default)
        if value is not self.default and (problem := self.problem()):
            raise ImproperlyConfigured(problem)
        self._value, self._is_known = value, True
        return value

    def _on_change(self, *, setting: str, **_: object) -> None:
        if setting == self.name:
            self._is_known = False


def positive(default: float, doc: str, *, unit: str = "") -> Setting[float]:
    return Setting(
        default,
        doc,
        kind=float,
        valid=lambda v: 0 < v <= MAX_SECONDS,
        want=f"above 0, at most {MAX_SECONDS}",
        unit=unit,
    )


def seconds(default: float, doc: str) -> Setting[float]:
    return positive(default, doc, unit="seconds")


def count(default: int, doc: str, *, least: int = 1, unit: str = "") -> Setting[int]:
    return Setting(
        default,
        doc,
        kind=int,
        valid=lambda v: least <= v <= MAX_INT,
        want=f"{least} or more, at most {MAX_INT}",
        unit=unit,
    )


def bytes_limit(doc: str) -> Setting[int]:
    text = f"{doc}. 0 means a share of what NATS offers, -1 no limit"
    return count(0, text, least=-1, unit="bytes")


def text(default: str, doc: str, *, is_secret: bool = False) -> Setting[str]:
    return Setting(default, doc, kind=str, is_secret=is_secret)


def are_names(values: Any) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _origin_flaw(origin: str) -> str:
    """Return why no page's origin would match an entry; "" if one can."""
    if "*" in origin and origin != "*":
        domain = origin.rpartition("*")[2].lstrip(".")
        cure = f"write '.{domain}' for all subdomains"
        if not domain or domain[0] == ":":
            cure = "list each origin, or '*' alone for all"
        return f"{origin!r} holds '*'; {cure}"
    if "://" not in origin and _PORT.match(origin):
        return (
            f"{origin!r} has a port, but no scheme; write 'https://{origin}' or 'http://{origin}'"
        )
    return ""


def origin_flaws(origins: list[object]) -> str:
    return "; ".join(
        flaw for each in origins if isinstance(each, str) and (flaw := _origin_flaw(each))
    )


def are_origins(origins: Any) -> bool:
    return are_names(origins) and not origin_flaws(origins)


def _is_network(value: str) -> bool:
    with suppress(ValueError):
        return bool(ip_network(value))
    return False


def _network_flaw(value: str) -> str:
    """Return why an entry is not a network; "" if it is one."""
    if _is_network(value):
        return ""
    with suppress(ValueError):
        return f"{value!r} has bits beyond its prefix; write '{ip_network(value, strict=False)}'"
    return f"{value!r} is not a network; write '10.0.0.0/8' or 'fd00::/8', for example"


def network_flaws(networks: list[object]) -> str:
    return "; ".join(
        flaw for each in networks if isinstance(each, str) and (flaw := _network_flaw(each))
    )


def are_networks(networks: Any) -> bool:
    return are_names(networks) and not network_flaws(networks)


def number_flaw(kind: type, least: float, most: float) -> Callable[[Any], str]:
    """Return what says why a value is not a number between *least* and *most*."""

    def flaw(value: Any) -> str:
        right = isinstance(value, (kind, int)) and not isinstance(value, bool)
        if right and least <= value <= most:
            return ""
        return f"is {value!r}, but must be {least:g} to {most:g}"

    return flaw


def options_flaws(options: Mapping[Any, Any], known: Mapping[str, Callable[[Any], str]]) -> str:
    """Return what is wrong with *options*, each of which *known* has."""
    found = []
    for name, value in options.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            cure = f"did you mean {near[0]!r}?" if near else f"it may be one of {', '.join(known)}"
            found.append(f"{name!r} is unknown: {cure}")
        elif flaw := known[name](value):
            found.append(
                f"{name!r}: {flaw}" if flaw.startswith(("write", "'")) else f"{name!r} {flaw}"
            )
    return ", ".join(found)
