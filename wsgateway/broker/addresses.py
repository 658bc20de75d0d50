"""Where NATS servers are: URLs, and which server to try next. Pure.

The configured servers come first. What a cluster announces about itself is used after them, and
only as long as it is announced: rolling restarts would otherwise leave dead addresses behind.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, unquote, urlsplit

__all__ = ["Address", "ServerList", "split_urls", "url_cure"]

DEFAULT_PORT = 4222
MAX_ANNOUNCED = 64
"""Announced servers that are remembered."""
RANDOM = random.SystemRandom()
FOREIGN_SCHEMES = {
    "amqp": "that is a RabbitMQ server",
    "amqps": "that is a RabbitMQ server",
    "http": "that is a web address; NATS' port for clients is 4222",
    "https": "that is a web address; NATS' port for clients is 4222",
    "redis": "that is a Redis server",
    "rediss": "that is a Redis server",
    "unix": "NATS does not listen on Unix sockets",
    "valkey": "that is a Valkey server",
    "valkeys": "that is a Valkey server",
    "ws": "NATS over websockets is not supported",
    "wss": "NATS over websockets is not supported",
}
REDIS_PORTS = (6379, 26379)
_SPACE = re.compile(r"[\s;]")
_SECOND_URL = re.compile(r"[\s;]+\w+://")
_NO_COLON = re.compile(r"(nats|tls)//", re.IGNORECASE)
_HALF_SCHEME = re.compile(r"(nats|tls):/?(?!\d+/?$)[^/@]+$", re.IGNORECASE)


def split_urls(urls: str) -> list[str]:
    """Return the entries of a comma-separated list."""
    return [url.strip() for url in urls.split(",") if url.strip()]


def url_cure(urls: str) -> str:
    """Return what to do about a list with an entry that `Address.parse` refuses.

    Args:
        urls: The whole list: a comma in a password cuts it into pieces.
    """
    cure = "use nats://host:4222 or tls://host:4222; separate several by commas"
    if "@" in urls:
        cure += "; percent-encode special characters in a password (, is %2C, / is %2F)"
    return cure


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
        parts = _split(url)
        if parts.path.strip("/") or parts.query or parts.fragment:
            # A "/", "?" or "#" in a password ends the address, and the rest is half a password
            cure = " (in a password, write / as %2F, ? as %3F, # as %23)" if "@" in url else ""
            raise ValueError(f"something follows the port{cure}")
        try:
            port = parts.port
        except ValueError as exc:
            raise ValueError("the port is not a number from 1 to 65535") from exc
        if not parts.hostname or parts.hostname.isdigit():
            raise ValueError("no host")
        if _SPACE.search(parts.hostname):
            raise ValueError("the host is not valid")
        if port == 0:
            raise ValueError("the port is not a number from 1 to 65535")
        if port in REDIS_PORTS and "://" not in url:
            raise ValueError(
                f"port {port} is where Redis listens; if NATS does, write nats:// before the host"
            )
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
        """Whether the URL has credentials."""
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
            ValueError: It is not an address.
        """
        other = Address.parse(f"nats://{netloc}")
        # Certificates name hosts; a cluster announces IP addresses
        known = self.tls_name or ("" if self.is_ip else self.host)
        return replace(
            self, host=other.host, port=other.port, tls_name=known if other.is_ip else ""
        )


def _split(url: str) -> SplitResult:
    """Return the parts of *url*, which has a scheme of NATS.

    Raises:
        ValueError: It is another one's, or it cannot be told where the parts are.
    """
    if _SECOND_URL.search(url):
        raise ValueError("it holds two URLs without a comma between them")
    if url.startswith("//"):
        raise ValueError("nats: is missing before //")
    if found := _NO_COLON.match(url):
        raise ValueError(f"the colon after {found[1]} is missing")
    if _HALF_SCHEME.match(url):
        raise ValueError(f"// is missing after {url.partition(':')[0]}:")
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
    except ValueError as exc:  # its text may hold the password
        raise ValueError("the host is not valid") from exc
    if parts.scheme not in ("nats", "tls"):
        why = FOREIGN_SCHEMES.get(parts.scheme)
        raise ValueError(f"scheme {parts.scheme!r}" + (f": {why}" if why else ""))
    return parts


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
