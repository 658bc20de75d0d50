"""Where NATS servers are: URLs, and which server to try next. Pure.

The configured servers come first. What a cluster announces about itself is used after them, and
only as long as it is announced: rolling restarts would otherwise leave dead addresses behind.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

__all__ = ["Address", "ServerList"]

DEFAULT_PORT = 4222
MAX_ANNOUNCED = 64
"""Announced servers that are remembered."""
RANDOM = random.SystemRandom()
WEBSOCKETS = ("ws", "wss")


@dataclass(frozen=True)
class Address:
    """One server and the login for it.

    Attributes:
        host: A name or an IP address, an IPv6 one without brackets.
        port: Its port.
        tls: Whether its URL insists on TLS.
        user: From the URL, decoded; "" without.
        password: From the URL, decoded; "" without.
        token: From the URL, decoded: a login without a colon; "" without.
        tls_name: Whose certificate to expect; "": the host's.
    """

    host: str
    port: int
    tls: bool = False
    user: str = ""
    password: str = ""
    token: str = ""
    tls_name: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Return the address that *url* names; ``nats://`` and port 4222 may be left out.

        Raises:
            ValueError: It names none; the text holds no password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"nats://{url}")
        except ValueError as exc:  # its text may hold the password
            raise ValueError("the host is not valid") from exc
        if parts.scheme in WEBSOCKETS:
            raise ValueError(f"scheme {parts.scheme!r}: NATS over websockets is not supported")
        if parts.scheme not in ("nats", "tls"):
            raise ValueError(f"scheme {parts.scheme!r}")
        if parts.path.strip("/") or parts.query or parts.fragment:
            # A "/", "?" or "#" in a password ends the address, and the rest is half a password
            raise ValueError(
                "something follows the port (in a password, write / as %2F, ? as %3F, # as %23)"
            )
        try:
            port = parts.port
        except ValueError as exc:
            raise ValueError("the port is not a number from 1 to 65535") from exc
        if not parts.hostname:
            raise ValueError("no host")
        if port == 0:
            raise ValueError("the port is not a number from 1 to 65535")
        user, password = unquote(parts.username or ""), parts.password
        return cls(
            host=parts.hostname,
            port=port or DEFAULT_PORT,
            tls=parts.scheme == "tls",
            user="" if password is None else user,
            password=unquote(password or ""),
            token=user if password is None else "",
        )

    @property
    def netloc(self) -> str:
        """Host and port, without the login."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL without the login."""
        return f"{'tls' if self.tls else 'nats'}://{self.netloc}"

    @property
    def has_login(self) -> bool:
        """Whether the URL says who connects."""
        return bool(self.user or self.password or self.token)

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def sibling(self, netloc: str) -> Address:
        """Return the address of another server of the same cluster, with the same login.

        Args:
            netloc: Host and port as the cluster announces them.

        Raises:
            ValueError: That is no address.
        """
        other = Address.parse(netloc)
        # Certificates name hosts; a cluster announces IP addresses
        known = self.tls_name or ("" if self.is_ip else self.host)
        return replace(
            self, host=other.host, port=other.port, tls_name=known if other.is_ip else ""
        )


class ServerList:
    """Which servers there are, in the order to try them.

    Args:
        configured: Tried first.
        discover: Whether to use what the cluster announces.
        shuffle: Brings a list into a random order, so that gateways spread over the servers.
    """

    def __init__(
        self,
        configured: Iterable[Address],
        *,
        discover: bool = True,
        shuffle: Callable[[list[Address]], None] = RANDOM.shuffle,
    ) -> None:
        self.configured = list(configured)
        self.announced: list[Address] = []
        """What the server said last, without what is configured."""
        self._discover = discover
        self._shuffle = shuffle

    def order(self) -> list[Address]:
        """Return all addresses: the configured ones, then the announced ones, each shuffled."""
        first, then = self.configured[:], self.announced[:]
        self._shuffle(first)
        self._shuffle(then)
        return first + then

    def hear(self, announced: Iterable[object], via: Address) -> None:
        """Replace what was announced before.

        Args:
            announced: Hosts with ports, as in the server's INFO; invalid entries are skipped.
            via: The server that says so; the others take its login.
        """
        if not self._discover:
            return
        known = {address.netloc for address in self.configured}
        found: dict[str, Address] = {}
        for netloc in announced:
            try:
                address = via.sibling(str(netloc))
            except ValueError:
                continue
            if address.netloc not in known and len(found) < MAX_ANNOUNCED:
                found[address.netloc] = address
        self.announced = list(found.values())
