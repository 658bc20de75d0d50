"""To which addresses requests may go: public ones, and the networks that a setting names.

A host's name is looked up here, and the connection goes to an address that was checked. If another
lookup followed, DNS could answer that with the address of a server behind the firewall.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from wsgateway.exceptions import WsGatewayError

__all__ = ["AddressRefused", "Addresses", "is_allowed", "is_public"]

KEPT = 30.0
"""Seconds for which addresses are used before they are looked up again."""
UNICAST = IPv6Network("2000::/3")
"""All that is assigned for the internet. Source: IANA, IPv6 Global Unicast Address Space."""
EXAMPLES = IPv6Network("3fff::/20")
NAT64 = IPv6Network("64:ff9b::/96")


class AddressRefused(WsGatewayError):
    """A host has no address that requests may go to."""


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that packets to *address* end at, if it wraps one."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)


def is_public(text: str) -> bool:
    """Say whether anybody on the internet could reach this address, too."""
    address = _inner(ip_address(text))
    if isinstance(address, IPv6Address) and (address not in UNICAST or address in EXAMPLES):
        return False  # other forms wrap IPv4 addresses, or belong to one site
    return address.is_global and not address.is_multicast


def is_allowed(text: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Say whether requests may go to this address, if these networks are allowed besides."""
    address = _inner(ip_address(text))
    return is_public(text) or any(address in network for network in networks)


class Addresses:
    """The addresses of one host.

    Args:
        host: Its name, or an address.
        port: The port.
        networks: Those that are allowed although they are not public.
        lookup: Returns what `socket.getaddrinfo` does; blocks.
    """

    def __init__(
        self,
        host: str,
        port: int,
        networks: Iterable[IPv4Network | IPv6Network],
        lookup: Callable[..., list[Any]] = socket.getaddrinfo,
    ) -> None:
        self._host = host
        self._port = port
        self._networks = tuple(networks)
        self._lookup = lookup
        self._found: list[str] = []
        self._best = ""  # tried first: the one before it did not work
        self._until = 0.0  # when they are looked up again, by the monotonic clock
        # Shared by those who wait for it, and by those who come once they have given up
        self._looking: asyncio.Future[tuple[list[str], float]] | None = None
        # A thread of its own: name servers that do not answer must not keep other hosts waiting
        self._thread = ThreadPoolExecutor(1, "wsgateway-webhook-dns")

    async def find(self) -> list[str]:
        """Return the addresses that requests may go to, the best first.

        Raises:
            AddressRefused: There is none; the text says which networks would have to be allowed.
            OSError: The name cannot be looked up.
        """
        while time.monotonic() >= self._until:
            if self._looking is None:
                loop = asyncio.get_running_loop()
                self._looking = loop.run_in_executor(self._thread, self._look_up)
            looking = self._looking
            try:
                found, at = await asyncio.shield(looking)
            finally:
                if looking.done() and self._looking is looking:
                    self._looking = None
            self._found, self._until = self._allowed(found), at + KEPT
        return sorted(self._found, key=lambda address: address != self._best)

    def avoid(self, address: str) -> None:
        """Try another one first from now on: this one does not work."""
        if address in self._found:
            self._best = self._found[(self._found.index(address) + 1) % len(self._found)]

    def forget(self) -> None:
        """Look them up again next time: none of them works."""
        self._until = 0.0

    def close(self) -> None:
        """Look nothing up any more. Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _look_up(self) -> tuple[list[str], float]:
        """Return what DNS knows, and when."""
        entries = self._lookup(self._host, self._port, type=socket.SOCK_STREAM)
        found = list(dict.fromkeys(entry[4][0].partition("%")[0] for entry in entries))
        return found, time.monotonic()

    def _allowed(self, found: list[str]) -> list[str]:
        allowed = [address for address in found if is_allowed(address, self._networks)]
        if not allowed:
            raise AddressRefused(
                f"{self._host} has the address {', '.join(found)}, which is not public; if "
                "requests may go there, add its network to allow_private"
            )
        return allowed
