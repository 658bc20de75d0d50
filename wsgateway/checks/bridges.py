"""WSGATEWAY_BRIDGES: what no single value shows."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import combinations
from typing import Any

from django.core.checks import CheckMessage, Error, Warning

from wsgateway.bridges.config import ENCRYPTED, PACKAGES, Bridge, missing_package
from wsgateway.checks.base import LOOPBACK, possible, sentence
from wsgateway.checks.values import readable
from wsgateway.declared import bridges, discover
from wsgateway.services.registry import bridge_flaws

__all__ = ["check_bridge_packages", "check_bridges", "check_production_bridges"]

NEEDED = (
    "WSGATEWAY_BRIDGES",
    "WSGATEWAY_PREFIX",
    "WSGATEWAY_SERVICES_MODULE",
    "WSGATEWAY_WEBHOOKS",
)


def check_bridges(**kwargs: Any) -> list[CheckMessage]:
    """E016: a bridge that cannot run, or whose services something else takes as well."""
    if not possible(*NEEDED):
        return []
    discover()
    found = list(bridges().values())
    flaws = [flaw for bridge in found for flaw in (*_flaws(bridge), *bridge_flaws(bridge))]
    flaws += [flaw for one, other in combinations(found, 2) for flaw in _clashes(one, other)]
    hint = "docs/how-to/bridges.md shows how to set up a bridge."
    return [Error(sentence(flaw), hint=hint, id="wsgateway.E016") for flaw in flaws]


def _flaws(bridge: Bridge) -> list[str]:
    """Return why *bridge* cannot run, whatever its services are."""
    return [
        f"{option!r} of the bridge {bridge.name!r} is {path!r}, which cannot be read"
        for option in ("ca", "cert", "key")
        if (path := getattr(bridge, option)) and not readable(path)
    ]


def _clashes(one: Bridge, other: Bridge) -> list[str]:
    """Return what two bridges would take from each other."""
    found = []
    names = f"the bridges {one.name!r} and {other.name!r}"
    if one.sends and other.sends:
        found += [
            f"{names} both take what clients send to {service!r}; remove it from one of them"
            for service in one.services
            if service in other.services
        ]
    if one.receives and other.receives and _is_same_bus(one, other):
        has_same_services = set(one.services) == set(other.services)
        if has_same_services and one.group == other.group:
            return found  # they share the records, as two processes of one bridge do
        harm = "carry each record twice" if has_same_services else "set aside each other's records"
        found.append(
            f"{names} both read what services produce on {one.where}, and would {harm}; list all "
            "services in one of them"
        )
    return found


def _is_same_bus(one: Bridge, other: Bridge) -> bool:
    """Say whether two bridges read the same topics or exchanges, as far as their URLs tell.

    A server has one port with TLS, and another one without. Of the same kind, two ports are two
    servers, such as those of a test.
    """
    if (one.bus, one.vhost) != (other.bus, other.vhost):
        return False
    if one.is_encrypted == other.is_encrypted:
        return not _places(one).isdisjoint(_places(other))
    return not {host for host, _ in _places(one)}.isdisjoint(host for host, _ in _places(other))


def _places(bridge: Bridge) -> set[tuple[str, int]]:
    """Return hosts and ports of a bridge's bus; this machine has one name."""
    return {("" if host in LOOPBACK else host, port) for host, port in bridge.servers}


def check_bridge_packages(**kwargs: Any) -> list[CheckMessage]:
    """W019: what a bridge needs is not installed; not an error where no bridge runs."""
    if not possible(*NEEDED):
        return []
    hint = (
        "runbridge and setup_bridges end with an error without it. If this machine runs neither, "
        "silence this check."
    )
    return [
        Warning(sentence(missing_package(bridge)), hint=hint, id="wsgateway.W019")
        for bridge in bridges().values()
        if find_spec(PACKAGES[bridge.bus]) is None
    ]


def check_production_bridges(**kwargs: Any) -> list[CheckMessage]:
    """W124: what a bridge carries, perhaps a password too, crosses a network unencrypted."""
    if not possible(*NEEDED):
        return []
    found: list[CheckMessage] = []
    for bridge in bridges().values():
        hosts = [server.host for server in bridge.servers if server.host not in LOOPBACK]
        if hosts and not bridge.is_encrypted:
            what = "its password and its messages" if bridge.password else "its messages"
            found.append(
                Warning(
                    f"The bridge {bridge.name!r} sends {what} to {', '.join(hosts)} unencrypted.",
                    hint=f"Begin its URL with {ENCRYPTED[bridge.bus]}://. Silence this check if "
                    "the network itself is encrypted.",
                    id="wsgateway.W124",
                )
            )
    return found
