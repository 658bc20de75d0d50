"""Why a layer may not reach the sockets of the project's gateway."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

from wsgateway.broker.addresses import Address, split_urls
from wsgateway.conf import settings

__all__ = ["Difference", "find_differences"]

LOOPBACK = ("127.0.0.1", "::1")


class Difference(NamedTuple):
    """Why the sockets of the project's gateway get nothing from the layer, and what to do."""

    problem: str
    cure: str


def find_differences(urls: Collection[str], prefix: str | None) -> Iterator[Difference]:
    """Return where the layer is elsewhere than the gateway of the same project.

    Args:
        urls: The layer's servers; empty: as the settings say.
        prefix: The layer's; None: as the settings say.
    """
    if not settings.is_installed("wsgateway"):
        return
    if settings.BROKER == "memory":
        if urls:
            yield Difference(
                "servers are named, so this layer connects to NATS, although PUBSUB_BROKER is "
                "'memory'",
                "leave servers out, and the layer is in memory too",
            )
        return
    if prefix is not None and prefix != settings.PREFIX:
        yield Difference(
            f"prefix is {prefix!r}, but WSGATEWAY_PREFIX is {settings.PREFIX!r}, so what this "
            "layer sends to users does not reach their sockets",
            "leave prefix out, unless this layer is not for sockets",
        )
    gateways = {_place(url) for url in split_urls(settings.URL)}
    if urls and not gateways & {_place(url) for url in urls}:
        where = f"names {', '.join(sorted(gateways))}" if gateways else "is empty"
        yield Difference(
            f"servers are {', '.join(sorted(map(_place, urls)))}, but NATS_BROKER_URL {where}, "
            "so what this layer sends to users does not reach their sockets",
            "leave servers out to use NATS_BROKER_URL, unless they are of one cluster",
        )


def _place(url: str) -> str:
    """Return host and port, the same for every name of this machine."""
    address = Address.parse(url)
    host = "localhost" if address.host in LOOPBACK else address.host
    return replace(address, host=host).netloc
