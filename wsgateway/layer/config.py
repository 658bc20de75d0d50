"""The options of the channel layer: what each may be, and what to do if it is something else.

The layer refuses the first wrong option; ``manage.py check`` reports all of them, in the same
words. channels_redis' keys are understood, its values where they mean something in NATS.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured

from wsgateway.broker.addresses import REDIS_PORTS, Address, split_urls, url_cure
from wsgateway.exceptions import NameRefused
from wsgateway.layer.serializers import registry
from wsgateway.protocol.subjects import Subjects
from wsgateway.setting import MAX_INT, MAX_SECONDS

__all__ = [
    "OPTIONS",
    "OptionRefused",
    "find_problems",
    "require_possible",
    "server_urls",
]

SERVER_KEYS = {"address", "host", "port"}
SENTINEL_KEYS = {"master_name", "sentinels", "sentinel_kwargs", "service_name"}
SERVER_CURE = (
    "list the servers of one NATS cluster, for example ['nats://localhost:4222'], or leave it out "
    "to use NATS_BROKER_URL"
)
PREFIX_CURE = (
    "leave prefix out: the layer then shares WSGATEWAY_PREFIX with the gateway, and reaches its "
    "sockets"
)
NOT_IN_A_CHANNEL = re.compile(r"[^A-Za-z0-9_.!*?\[\]-]")
"""What neither the name of a channel nor a glob has."""


class OptionRefused(ImproperlyConfigured, ValueError):
    """An option of the channel layer that cannot work.

    Args:
        problem: Which one, and what is wrong with its value.
        cure: What to do.
    """

    def __init__(self, problem: str, cure: str) -> None:
        super().__init__(problem, cure)
        self.problem = problem
        self.cure = cure

    def __str__(self) -> str:
        return f"channel layer: {self.problem}; {self.cure}"


class Rule(NamedTuple):
    """What an option may be.

    Attributes:
        want: What *valid* wants.
        valid: Says whether a value is possible.
        cure: What to do about another one.
    """

    want: str
    valid: Callable[[Any], bool]
    cure: str


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_INT


def _is_seconds(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 < value <= MAX_SECONDS


def _is_event_type(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(value))


COUNT = Rule(f"a whole number from 1 to {MAX_INT}", _is_count, "give a number such as 100")
SECONDS = Rule(
    f"a number of seconds above 0, at most {MAX_SECONDS}", _is_seconds, "give a number such as 60"
)
EVENT_TYPE = Rule("the type of a message", _is_event_type, "for example 'connection.lost'")


def _check(rule: Rule) -> Callable[[str, Any], Iterator[OptionRefused]]:
    def problems(name: str, value: Any) -> Iterator[OptionRefused]:
        if not rule.valid(value):
            cure = rule.cure
            if isinstance(value, str) and rule is not EVENT_TYPE:
                cure += ", without quotes; int(…) converts what comes from the environment"
            yield OptionRefused(f"{name} is {_shown(value)}, but must be {rule.want}", cure)

    return problems


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _anything(name: str, value: Any) -> Iterator[OptionRefused]:
    return iter(())


# -- options with rules of their own -----------------------------------------------------------


def _check_prefix(name: str, prefix: Any) -> Iterator[OptionRefused]:
    if prefix is None:
        return
    if not isinstance(prefix, str):
        yield OptionRefused(f"prefix is {_shown(prefix)}, but must be text", PREFIX_CURE)
        return
    try:
        Subjects(prefix)
    except NameRefused as exc:
        yield OptionRefused(str(exc), PREFIX_CURE)


def _check_capacities(name: str, capacities: Any) -> Iterator[OptionRefused]:
    if capacities is None:
        return
    if not isinstance(capacities, Mapping):
        yield OptionRefused(
            f"{name} is {_shown(capacities)}, but must be a dict of patterns and numbers",
            "for example {'http.request': 200}; capacity is for all channels",
        )
        return
    for pattern, capacity in capacities.items():
        yield from _check_pattern(name, pattern)
        yield from _check(COUNT)(f"{name}[{pattern!r}]", capacity)


def _check_pattern(name: str, pattern: Any) -> Iterator[OptionRefused]:
    if isinstance(pattern, re.Pattern):
        pattern = pattern.pattern
    elif isinstance(pattern, str) and NOT_IN_A_CHANNEL.search(pattern):
        yield OptionRefused(
            f"{name} has the pattern {pattern!r}, which no channel matches: text is a glob",
            "pass a regular expression as re.compile(…)",
        )
    if not isinstance(pattern, str):
        yield OptionRefused(
            f"{name} has the pattern {_shown(pattern)}, but channels have names of type str",
            "give a glob such as 'http.*', or re.compile(…) of a str",
        )


def _check_keys(name: str, keys: Any) -> Iterator[OptionRefused]:
    if keys is None:
        return
    if not isinstance(keys, Collection) or isinstance(keys, (str, bytes, Mapping)):
        yield OptionRefused(
            f"{name} is of type {type(keys).__name__}, but must be a list of possible keys",
            "put the key into a list",
        )
        return
    for key in keys:
        if not isinstance(key, (str, bytes)) or not key:
            what = "an empty key" if isinstance(key, (str, bytes)) else f"a {type(key).__name__}"
            cure = "is the environment variable set that the key comes from?"
            yield OptionRefused(f"{name} holds {what}, but keys are non-empty text", cure)
    if keys and find_spec("cryptography") is None:
        yield OptionRefused(
            f"{name} need the package cryptography", 'run "pip install cryptography"'
        )


def _check_format(name: str, format: Any) -> Iterator[OptionRefused]:
    if not isinstance(format, str) or format not in registry.formats:
        yield OptionRefused(
            f"{name} is {_shown(format)}, but must be {' or '.join(map(repr, registry.formats))}",
            "wsgateway.layer.serializers.registry.register_serializer adds a format of your own",
        )


def _check_servers(name: str, servers: Any) -> Iterator[OptionRefused]:
    try:
        entries = _entries(name, servers)
    except OptionRefused as exc:
        yield exc
        return
    for entry in entries:
        try:
            _urls(name, entry)
        except OptionRefused as exc:
            yield exc


OPTIONS: dict[str, Callable[[str, Any], Iterator[OptionRefused]]] = {
    "servers": _check_servers,
    "hosts": _check_servers,
    "prefix": _check_prefix,
    "expiry": _check(SECONDS),
    "group_expiry": _check(SECONDS),
    "capacity": _check(COUNT),
    "channel_capacity": _check_capacities,
    "symmetric_encryption_keys": _check_keys,
    "random_prefix_length": _anything,  # it has no effect
    "serializer_format": _check_format,
    "max_message_size": _check(COUNT),
    "on_disconnect": _check(EVENT_TYPE),
    "on_reconnect": _check(EVENT_TYPE),
}
"""What finds the problems of each option."""


def find_problems(options: Mapping[str, Any]) -> Iterator[OptionRefused]:
    """Return everything that is wrong with *options*, which are by name, as in CONFIG."""
    for name in sorted(options.keys() - OPTIONS.keys(), key=str):
        near = difflib.get_close_matches(str(name), OPTIONS, n=1)
        yield OptionRefused(
            f"unknown option {name!r}",
            f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(OPTIONS)}",
        )
    if options.get("servers") is not None and options.get("hosts") is not None:
        yield OptionRefused("both servers and hosts are given", "keep one: they mean the same")
    for name, problems in OPTIONS.items():
        if name in options:
            yield from problems(name, options[name])


def require_possible(**options: Any) -> None:
    """Return if the layer can work with *options*.

    Raises:
        OptionRefused: It cannot.
    """
    for problem in find_problems(options):
        raise problem


# -- servers -----------------------------------------------------------------------------------


def server_urls(servers: Any, name: str = "servers") -> list[str]:
    """Return URLs; an empty list means that the settings say where.

    Args:
        servers: None, one server, or a list. A server is a URL, several URLs joined by commas, a
            (host, port) pair, or a dict with an ``address`` (or ``host`` and ``port``).
        name: What the option is called.

    Raises:
        OptionRefused: Something else, or a URL that is not NATS'; never shows a password.
    """
    return [url for entry in _entries(name, servers) for url in _urls(name, entry)]


def _entries(name: str, servers: Any) -> list[Any]:
    if servers is None:
        return []
    if isinstance(servers, (str, bytes, Mapping)) or _is_pair(servers):
        return [servers]
    if not isinstance(servers, Collection):
        kind = type(servers).__name__
        raise OptionRefused(f"{name} is of type {kind}, but must be a list", SERVER_CURE)
    return list(servers)


def _is_pair(server: Any) -> bool:
    return (
        isinstance(server, (list, tuple))
        and len(server) == 2
        and isinstance(server[0], str)
        and isinstance(server[1], int)
    )


def _urls(name: str, server: Any) -> list[str]:
    if isinstance(server, Mapping):
        return _urls_of_dict(name, server)
    if isinstance(server, (list, tuple)):
        return [_url_of_pair(name, server)]
    if server is None or (isinstance(server, str) and not split_urls(server)):
        raise OptionRefused(
            f"{name} holds {server!r} instead of a server",
            f"is the environment variable set that it comes from? If not, {SERVER_CURE}",
        )
    if not isinstance(server, str):
        problem = f"{name} holds something of type {type(server).__name__}, not a NATS server"
        raise OptionRefused(problem, SERVER_CURE)
    for url in split_urls(server):
        try:
            Address.parse(url)
        except ValueError as exc:
            problem = f"{name} has an entry that is not the URL of a NATS server: {exc}"
            raise OptionRefused(problem, url_cure(server)) from None
    return split_urls(server)


def _urls_of_dict(name: str, server: Mapping[Any, Any]) -> list[str]:
    if server.keys() & SENTINEL_KEYS:
        raise OptionRefused(
            f"{name} describes Redis Sentinel, which is not a NATS server",
            f"NATS needs none: {SERVER_CURE}",
        )
    if "address" in server:  # first: its scheme says most about who is meant
        found = _urls(name, server["address"])
    elif server.get("host"):
        found = [_url_of_pair(name, (server["host"], server.get("port", 4222)))]
    else:
        raise OptionRefused(f"{name} holds a dict without address and host", SERVER_CURE)
    if unknown := server.keys() - SERVER_KEYS:
        raise OptionRefused(
            f"{name} holds a dict with {', '.join(sorted(map(repr, unknown)))}, which are not "
            "options of a NATS server",
            "give address, or host and port; put the login into the URL "
            "(nats://user:password@host:4222) or into WSGATEWAY_NATS_USER and "
            "WSGATEWAY_NATS_PASSWORD, and a CA into WSGATEWAY_NATS_TLS_CA",
        )
    return found


def _url_of_pair(name: str, pair: Collection[Any]) -> str:
    host, port = pair if len(pair) == 2 else ("", None)
    if isinstance(port, str) and port.isdecimal():
        port = int(port)
    port = 4222 if port is None else port
    if not isinstance(host, str) or not host or isinstance(port, bool) or not isinstance(port, int):
        raise OptionRefused(f"{name} holds {_types(pair)}, not a (host, port) pair", SERVER_CURE)
    if port in REDIS_PORTS:
        raise OptionRefused(
            f"{name} names port {port}, where Redis listens",
            f"{SERVER_CURE}; if NATS does listen there, write 'nats://host:{port}'",
        )
    url = Address(host, port).url
    try:
        Address.parse(url)
    except ValueError as exc:
        problem = f"{name} holds a (host, port) that is not a NATS server: {exc}"
        raise OptionRefused(problem, SERVER_CURE) from None
    return url


def _types(items: Collection[Any]) -> str:
    """Return what a list holds, without values: one may be a password."""
    return f"({', '.join(type(item).__name__ for item in items)})"
