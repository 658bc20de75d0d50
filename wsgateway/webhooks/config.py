"""What ``WSGATEWAY_WEBHOOKS`` says of each webhook. Pure; no text shows a secret."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any
from urllib.parse import urlsplit

from wsgateway.setting import are_names, network_flaws, number_flaw, options_flaws
from wsgateway.webhooks.signing import key_of

__all__ = [
    "NO_HTTPX",
    "Endpoint",
    "EventsWebhook",
    "IdentityWebhook",
    "Webhook",
    "are_webhooks",
    "events_webhook_flaws",
    "events_webhook_of",
    "identity_webhook_flaws",
    "identity_webhook_of",
    "is_events_webhook",
    "is_identity_webhook",
    "webhook_flaws",
    "webhook_of",
]

NO_HTTPX = "webhooks need httpx; run: pip install 'wsgateway[webhooks]'"
EVENTS = ("socket.connected", "socket.disconnected", "user.online", "user.offline")
MAX_TIMEOUT = 600.0
PLACE = re.compile(r"(\[[^]]*\]|[^][:]+)(?::[0-9]*)?")
"""The host of a URL, and its port."""
LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE | re.ASCII)
"""One part of a name in DNS; some have underscores."""
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE | re.ASCII)
MAX_HOST = 253
RETRY = {
    "attempts": (int, 1, 1000),
    "initial": (float, 0, 86400),
    "factor": (float, 0, 100),
    "cap": (float, 0, 86400),
    "jitter": (float, 0, 1),
}
"""What ``retry`` may have, see `wsgateway.RetryPolicy`, and between which values."""


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and how.

    Attributes:
        url: The address.
        keys: Those that sign; at least one.
        timeout: Seconds that a request may take, with its answer.
        allow_private: Networks that are not public, but may be sent to.
        ca: Path of the certificates that the server's must be signed by; empty: the usual ones.
    """

    url: str
    keys: tuple[bytes, ...] = field(repr=False)
    timeout: float = 10.0
    allow_private: tuple[IPv4Network | IPv6Network, ...] = ()
    ca: str = ""

    @property
    def origin(self) -> str:
        """The address without its path, which may hold a token: for people."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def is_plain(self) -> bool:
        """Whether requests are not encrypted."""
        return urlsplit(self.url).scheme == "http"


@dataclass(frozen=True)
class Webhook:
    """The webhook of a service.

    Attributes:
        endpoint: Where it is.
        concurrency: Users whose messages one worker posts at once; None: as for handlers.
        retry: What `wsgateway.RetryPolicy` is made of.
    """

    endpoint: Endpoint
    concurrency: int | None = None
    retry: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EventsWebhook:
    """The webhook that hears of sockets and users.

    Attributes:
        endpoint: Where it is.
        events: The types of what is posted.
        retry: What `wsgateway.RetryPolicy` is made of.
    """

    endpoint: Endpoint
    events: frozenset[str]
    retry: Mapping[str, Any] = field(default_factory=dict)


def events_webhook_of(options: Mapping[str, Any]) -> EventsWebhook:
    """Return what the value of ``WSGATEWAY_EVENTS_WEBHOOK`` says; it has no flaws."""
    options = dict(options)
    events, retry = options.pop("events", EVENTS), options.pop("retry", {})
    return EventsWebhook(_endpoint_of(options), frozenset(events), retry)


@dataclass(frozen=True)
class IdentityWebhook:
    """The webhook that says whose socket it is.

    Attributes:
        endpoint: Where it is.
        headers: Names of the headers that it gets, in lower case.
        cookies: Names of the cookies that it gets.
        cache: Seconds for which an answer is kept.
    """

    endpoint: Endpoint
    headers: tuple[str, ...]
    cookies: tuple[str, ...]
    cache: float = 5.0


def identity_webhook_of(options: Mapping[str, Any]) -> IdentityWebhook:
    """Return what the value of ``WSGATEWAY_IDENTITY_WEBHOOK`` says; it has no flaws."""
    options = dict(options)
    headers = tuple(name.lower() for name in options.pop("headers", ()))
    cookies, cache = tuple(options.pop("cookies", ())), options.pop("cache", 5.0)
    return IdentityWebhook(_endpoint_of(options), headers, cookies, cache)


def webhook_of(options: Mapping[str, Any]) -> Webhook:
    """Return what the options of one webhook say; they have no flaws."""
    options = dict(options)
    concurrency, retry = options.pop("concurrency", None), options.pop("retry", {})
    return Webhook(_endpoint_of(options), concurrency, retry)


def _endpoint_of(options: dict[str, Any]) -> Endpoint:
    secrets = options.pop("secret")
    keys = tuple(map(key_of, [secrets] if isinstance(secrets, str) else secrets))
    networks = tuple(map(ip_network, options.pop("allow_private", ())))
    return Endpoint(**options, keys=keys, allow_private=networks)


# -- flaws ---------------------------------------------------------------------------------


def _url_flaw(url: Any) -> str:
    want = "write a URL such as 'https://example.com/webhooks/orders'"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (TypeError, ValueError, AttributeError):
        return want
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        return want
    if "@" in parts.netloc:
        return "holds a user name or password; leave them out, because the signature proves who"
    place = PLACE.fullmatch(parts.netloc)
    if place is None or not _is_host(place[1]):
        return f"has the host {parts.hostname!r}, which is neither a name nor an address"
    return "holds a fragment, which no server gets" if "#" in url else ""


def _is_host(host: str) -> bool:
    """Say whether *host*, as it stands in a URL, is an address, or a name that DNS may have."""
    labels = host.removesuffix(".").split(".")
    try:
        if host.startswith("["):
            return "%" not in host and bool(IPv6Address(host[1:-1]))
        if NUMBER.fullmatch(labels[-1]):  # some would take it for an address, and others not
            return bool(IPv4Address(host))
    except ValueError:
        return False
    return len(host) <= MAX_HOST and all(LABEL.fullmatch(label) for label in labels)


def _secret_flaw(secrets: Any) -> str:
    secrets = [secrets] if isinstance(secrets, str) else secrets
    if not isinstance(secrets, (list, tuple)) or not secrets or not are_names(secrets):
        return "must be a secret such as 'whsec_…', or a list of them"
    for number, secret in enumerate(secrets, 1):
        try:
            key_of(secret)
        except ValueError as exc:
            which = f"number {number} " if len(secrets) > 1 else ""
            return f"{which}{exc}; make one with: openssl rand -base64 32 | sed s/^/whsec_/"
    return ""


def _networks_flaw(networks: Any) -> str:
    if not isinstance(networks, (list, tuple)) or not are_names(networks):
        return "must be a list of networks, for example ['10.0.0.0/8']"
    return network_flaws(list(networks))


def _retry_flaw(retry: Any) -> str:
    if not isinstance(retry, Mapping):
        return "must be a dict, for example {'attempts': 20, 'cap': 300}"
    return options_flaws(retry, {name: number_flaw(*each) for name, each in RETRY.items()})


def _events_flaw(events: Any) -> str:
    known = ", ".join(EVENTS)
    if not isinstance(events, (list, tuple)) or not events or not are_names(events):
        return f"must be a list of some of {known}"
    unknown = [repr(each) for each in events if each not in EVENTS]
    return f"has {', '.join(unknown)}, but may have {known}" if unknown else ""


def _names_flaw(names: Any) -> str:
    if isinstance(names, (list, tuple)) and are_names(names) and all(map(str.isascii, names)):
        return ""
    return "must be a list of names"


def _ca_flaw(path: Any) -> str:
    return "" if isinstance(path, str) else "must be the path of a file with certificates"


ENDPOINT: dict[str, Callable[[Any], str]] = {
    "url": _url_flaw,
    "secret": _secret_flaw,
    "timeout": number_flaw(float, 0.1, MAX_TIMEOUT),
    "allow_private": _networks_flaw,
    "ca": _ca_flaw,
}
WEBHOOK = {**ENDPOINT, "concurrency": number_flaw(int, 1, 10_000), "retry": _retry_flaw}

IDENTITY_WEBHOOK = {
    **ENDPOINT,
    "headers": _names_flaw,
    "cookies": _names_flaw,
    "cache": number_flaw(float, 0, 3600),
}
EVENTS_WEBHOOK = {**ENDPOINT, "events": _events_flaw, "retry": _retry_flaw}


def _endpoint_flaw(options: Any, known: Mapping[str, Callable[[Any], str]] = WEBHOOK) -> str:
    if not isinstance(options, Mapping):
        return "must be a dict with 'url' and 'secret'"
    missing = [name for name in ("url", "secret") if name not in options]
    return f"lacks {' and '.join(map(repr, missing))}" if missing else options_flaws(options, known)


def webhook_flaws(value: Mapping[Any, Any]) -> str:
    """Return what is wrong with a value of ``WSGATEWAY_WEBHOOKS``, and what to write."""
    found = []
    for service, options in value.items():
        if not isinstance(service, str) or not service:
            found.append(f"{service!r} is not the name of a service")
        elif flaw := _endpoint_flaw(options):
            found.append(f"{service!r}: {flaw}")
    return "; ".join(found)


def are_webhooks(value: Any) -> bool:
    return not webhook_flaws(value)


def events_webhook_flaws(value: Any) -> str:
    """Return what is wrong with a value of ``WSGATEWAY_EVENTS_WEBHOOK``; empty, it is off."""
    return _endpoint_flaw(value, EVENTS_WEBHOOK) if value else ""


def identity_webhook_flaws(value: Any) -> str:
    """Return the same for ``WSGATEWAY_IDENTITY_WEBHOOK``."""
    flaw = _endpoint_flaw(value, IDENTITY_WEBHOOK) if value else ""
    if value and not flaw and not value.get("headers") and not value.get("cookies"):
        return "name the 'headers' or 'cookies' that it gets, for example ['authorization']"
    return flaw


def is_identity_webhook(value: Any) -> bool:
    return not identity_webhook_flaws(value)


def is_events_webhook(value: Any) -> bool:
    return not events_webhook_flaws(value)
