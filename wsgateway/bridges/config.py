"""What ``WSGATEWAY_BRIDGES`` says of each bridge. Pure; no text shows a credential."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from wsgateway.setting import are_names, number_flaw, options_flaws

__all__ = [
    "BUSES",
    "ENCRYPTED",
    "PACKAGES",
    "Bridge",
    "Server",
    "are_bridges",
    "bridge_flaws",
    "bridge_of",
    "bridges_of",
    "missing_package",
]

SCHEMES = {
    "kafka": ("kafka", False, 9092),
    "kafka+ssl": ("kafka", True, 9093),
    "amqp": ("amqp", False, 5672),
    "amqps": ("amqp", True, 5671),
}
"""Which bus a URL means, whether it is encrypted, and the usual port."""
ENCRYPTED = {"kafka": "kafka+ssl", "amqp": "amqps"}
BUSES = {"kafka": "Kafka", "amqp": "RabbitMQ"}
"""What people call each bus."""
PACKAGES = {"kafka": "aiokafka", "amqp": "aio_pika"}
"""The package that each bus needs, which the extra of the same name installs."""
DIRECTIONS = ("both", "send", "receive")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
ONLY_FOR = {"sasl": "kafka", "partitions": "kafka", "replication": "kafka", "queues": "amqp"}
"""Options that mean nothing to the other bus."""
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
GROUP = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
CONCURRENCY = 64


class Server(NamedTuple):
    """Where a server of the bus listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True)
class Bridge:
    """One bridge.

    Attributes:
        name: How the setting calls it.
        prefix: ``WSGATEWAY_PREFIX``; how the names of its topics and exchanges begin.
        bus: ``kafka`` or ``amqp``.
        servers: Those of its cluster that are tried first; at least one.
        services: The names of the services on the bus, of users or of topics.
        is_encrypted: Whether the connection is.
        vhost: The virtual host of AMQP.
        sends: Whether it carries what clients send.
        receives: Whether it carries what services produce.
        username: Whom it logs in as; "" without a login.
        password: Proves it.
        sasl: How it logs in to Kafka.
        ca: Path of the certificates that the servers' must be signed by; "": the usual ones.
        cert: Path of the client's certificate; "": none.
        key: Path of its key.
        group: The Kafka consumer group, or how the names of its AMQP queues begin.
        concurrency: Users whose messages are sent at once, for each service.
        queues: Over how many AMQP queues the records of services are spread.
        partitions: How many a Kafka topic gets that `setup_bridges` creates.
        replication: On how many Kafka servers each is kept; None: three, or all of fewer.
    """

    name: str
    prefix: str
    bus: str
    servers: tuple[Server, ...]
    services: tuple[str, ...]
    is_encrypted: bool = False
    vhost: str = "/"
    sends: bool = True
    receives: bool = True
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sasl: str = "PLAIN"
    ca: str = ""
    cert: str = ""
    key: str = ""
    group: str = ""
    concurrency: int = CONCURRENCY
    queues: int = 1
    partitions: int = 12
    replication: int | None = None

    @property
    def where(self) -> str:
        """Where the bus is, without credentials: for people."""
        scheme = next(
            each for each, known in SCHEMES.items() if known[:2] == (self.bus, self.is_encrypted)
        )
        path = "" if self.vhost == "/" else f"/{self.vhost}"
        return f"{scheme}://{','.join(map(str, self.servers))}{path}"


def bridge_of(name: str, options: Mapping[str, Any], prefix: str) -> Bridge:
    """Return what the options of one bridge say; they have no flaws.

    Args:
        name: The bridge's.
        options: Of ``WSGATEWAY_BRIDGES``.
        prefix: ``WSGATEWAY_PREFIX``.
    """
    options = dict(options)
    url = _parse(options.pop("url"))
    direction = options.pop("direction", "both")
    username = options.pop("username", "") or url.username
    password = options.pop("password", "") or url.password
    group = options.pop("group", "") or f"{prefix}.bridge.{name}"
    return Bridge(
        name=name,
        prefix=prefix,
        bus=url.bus,
        servers=url.servers,
        is_encrypted=url.is_encrypted,
        vhost=url.vhost,
        services=tuple(options.pop("services")),
        sends=direction != "receive",
        receives=direction != "send",
        username=username,
        password=password,
        group=group,
        **options,
    )


def bridges_of(value: Mapping[str, Mapping[str, Any]], prefix: str) -> dict[str, Bridge]:
    """Return the bridges that ``WSGATEWAY_BRIDGES`` names; see `bridge_of`."""
    return {name: bridge_of(name, options, prefix) for name, options in sorted(value.items())}


def missing_package(bridge: Bridge) -> str:
    """Return what to do if the package of a bridge's bus is missing."""
    package = PACKAGES[bridge.bus].replace("_", "-")
    return f"the bridge {bridge.name!r} needs {package}; run: pip install 'wsgateway[{bridge.bus}]'"


# -- the URL -------------------------------------------------------------------------------


class _Url(NamedTuple):
    bus: str
    is_encrypted: bool
    servers: tuple[Server, ...]
    vhost: str
    username: str
    password: str


def _parse(url: str) -> _Url:
    """Return what a URL says, which may name several servers, with commas between them.

    Raises:
        ValueError: It is wrong; the text never holds the URL, which may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        near = difflib.get_close_matches(scheme.lower(), SCHEMES, n=1) if separator else []
        meant = f"did you mean {near[0]}://?" if near else f"it may be one of {known}"
        named = separator and re.match(
            r"[a-z0-9+.-]{1,20}\Z", scheme
        )  # what cannot be one may hold a password
        said = f"has the unknown scheme {scheme!r}" if named else "has no scheme"
        raise ValueError(f"{said}: {meant}")
    if any(c in rest for c in "?#"):
        raise ValueError(
            "holds '?' or '#'; write options beside it, and such characters of a "
            "password as %3F and %23"
        )
    netloc, _, path = rest.partition("/")
    login, _, hosts = netloc.rpartition("@")
    if "@" in login or "@" in path:
        raise ValueError(
            "holds '@' or '/' in the user name or password; write them as %40 and %2F, and the "
            "login once, before the first host"
        )
    username, _, password = login.partition(":")
    bus, is_encrypted, port = SCHEMES[scheme]
    if bus == "kafka" and path:
        raise ValueError("has a path, which Kafka does not know; end it after the last port")
    servers = tuple(_server(host, port) for host in hosts.split(","))
    vhost = unquote(path) or "/"
    return _Url(bus, is_encrypted, servers, vhost, unquote(username), unquote(password))


def _server(text: str, port: int) -> Server:
    try:
        parts = urlsplit(f"//{text}")
        host, given = parts.hostname, parts.port
    except ValueError:
        host, given = None, None
    if not host or given == 0 or not text.isprintable() or " " in text:
        raise ValueError("must name hosts and ports, for example host1:9092,host2:9092")
    return Server(host, given or port)


# -- flaws ---------------------------------------------------------------------------------


def _url_flaw(url: Any) -> str:
    if not isinstance(url, str) or not url:
        return "must be a URL such as 'kafka://host1:9092,host2:9092' or 'amqps://host/vhost'"
    try:
        _parse(url)
    except ValueError as exc:
        return str(exc)
    return ""


def _services_flaw(services: Any) -> str:
    if not isinstance(services, (list, tuple)) or not services or not are_names(services):
        return "must be a list of services, for example ['orders']"
    twice = sorted({each for each in services if services.count(each) > 1})
    return f"lists {twice[0]!r} twice" if twice else ""


def _choice_flaw(*choices: str) -> Callable[[Any], str]:
    def flaw(value: Any) -> str:
        if value in choices:
            return ""
        lower = {each.lower(): each for each in choices}
        near = difflib.get_close_matches(str(value).lower(), lower, n=1)
        known = ", ".join(choices)
        meant = f"did you mean {lower[near[0]]!r}?" if near else f"it may be one of {known}"
        return f"is {value!r}: {meant}"

    return flaw


def _text_flaw(what: str) -> Callable[[Any], str]:
    return lambda value: "" if isinstance(value, str) else f"must be {what}"


def _group_flaw(value: Any) -> str:
    if value == "" or (isinstance(value, str) and GROUP.match(value)):
        return ""
    return "must be at most 128 of [A-Za-z0-9._-]"


OPTIONS: dict[str, Callable[[Any], str]] = {
    "url": _url_flaw,
    "services": _services_flaw,
    "direction": _choice_flaw(*DIRECTIONS),
    "username": _text_flaw("text"),
    "password": _text_flaw("text"),
    "ca": _text_flaw("the path of a file with certificates"),
    "cert": _text_flaw("the path of a file with a certificate"),
    "key": _text_flaw("the path of a file with a private key"),
    "sasl": _choice_flaw(*MECHANISMS),
    "group": _group_flaw,
    "concurrency": number_flaw(int, 1, 10_000),
    "queues": number_flaw(int, 1, 256),
    "partitions": number_flaw(int, 1, 10_000),
    "replication": number_flaw(int, 1, 100),
}


def _combination_flaw(options: Mapping[str, Any]) -> str:
    """Return which options do not go together; each of them is right by itself."""
    url = _parse(options["url"])
    for option, bus in ONLY_FOR.items():
        if option in options and bus != url.bus:
            return f"{option!r} is an option of {bus}, but the URL means {url.bus}"
    for option in ("username", "password"):
        if options.get(option) and getattr(url, option):
            return f"{option!r} is given twice, here and in 'url'; remove one"
    has_user, has_password = (
        bool(options.get(option) or getattr(url, option)) for option in ("username", "password")
    )
    if has_user != has_password:
        there, missing = ("username", "password") if has_user else ("password", "username")
        return f"has a {there}, but no {missing}"
    if "sasl" in options and not has_user:
        return "'sasl' needs a username and a password"
    files = [option for option in ("ca", "cert", "key") if options.get(option)]
    if files and not url.is_encrypted:
        scheme = ENCRYPTED[url.bus]
        return f"{files[0]!r} needs an encrypted connection; begin the URL with {scheme}://"
    if bool(options.get("cert")) != bool(options.get("key")):
        return "'cert' and 'key' belong together; give both, or none"
    return ""


def _flaw(name: Any, options: Any) -> str:
    if not isinstance(name, str) or not NAME.match(name):
        return "name it with at most 64 of [A-Za-z0-9_-]"
    if not isinstance(options, Mapping):
        return "must be a dict with 'url' and 'services'"
    missing = [each for each in ("url", "services") if each not in options]
    if missing:
        return f"lacks {' and '.join(map(repr, missing))}"
    return options_flaws(options, OPTIONS) or _combination_flaw(options)


def bridge_flaws(value: Mapping[Any, Any]) -> str:
    """Return what is wrong with a value of ``WSGATEWAY_BRIDGES``, and what to write."""
    found = ((name, _flaw(name, options)) for name, options in value.items())
    return "; ".join(f"{name!r}: {flaw}" for name, flaw in found if flaw)


def are_bridges(value: Any) -> bool:
    return not bridge_flaws(value)
