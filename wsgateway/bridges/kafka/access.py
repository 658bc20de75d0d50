"""How a bridge reaches its Kafka cluster, and what its errors mean."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest

from wsgateway.bridges.tls import tls_context, tls_error, tls_flaw
from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable, reason_of

if TYPE_CHECKING:
    from wsgateway.bridges.config import Bridge

__all__ = ["REQUEST_TIMEOUT", "RIGHT_ERRORS", "Access", "said", "translate", "user_of"]

REQUEST_TIMEOUT = 15.0
"""Seconds that a request waits for its answer; also how long a server waits for its replicas."""
RETRY_PAUSE = 0.25
"""Seconds between two tries of a request, and between two looks for a new leader."""
LOGIN_ERRORS = (errors.SaslAuthenticationFailed, errors.AuthenticationFailedError)
RIGHT_ERRORS = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
)


_CONNECTION = re.compile(r"<AIOKafkaConnection host=(\S+) port=(\d+)>")


class Secret(str):
    """A text that a traceback with local variables does not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"

    def __str__(self) -> str:
        return "***"


class _Discreet(logging.Filter):
    """Keeps passwords and payloads out of the log, and floods.

    aiokafka logs each request with its bytes, and each record with its value, when its level is
    DEBUG. While a server is away, it logs the same warning several times a second.
    """

    EACH = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[tuple[str, str], float] = {}  # when each line was, last

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return False
        line, now = (record.name, str(record.msg)), time.monotonic()
        if self._logged.get(line, now - self.EACH) > now - self.EACH:
            return False
        self._logged[line] = now
        return True


def _hush() -> None:
    discreet = _Discreet()
    parts = ("conn", "producer.producer", "producer.sender", "consumer.fetcher")
    for name in ("", *(f".{part}" for part in parts), ".consumer.group_coordinator"):
        logging.getLogger(f"aiokafka{name}").addFilter(discreet)


_hush()


class Access:
    """What aiokafka's clients of one bridge are made with.

    Args:
        bridge: The bridge.
    """

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.client_id = f"wsgateway-{bridge.name}"
        self._tls: ssl.SSLContext | None = None  # once it is needed
        self._learnt: list[tuple[str, int]] = []  # the cluster's servers, as it names them

    def learn(self, servers: Iterable[tuple[str, int]]) -> None:
        """Remember the cluster's servers, for when none of those in the settings answers."""
        self._learnt = list(servers)

    def client_options(self) -> dict[str, Any]:
        """Return the arguments that each of aiokafka's clients takes.

        Raises:
            BusMisconfigured: A certificate cannot be read.
        """
        return self._options() | {
            "bootstrap_servers": [str(server) for server in self.bridge.servers],
            "client_id": self.client_id,
            "request_timeout_ms": int(REQUEST_TIMEOUT * 1000),
            "retry_backoff_ms": int(RETRY_PAUSE * 1000),
            "metadata_max_age_ms": 60_000,  # how soon new partitions are noticed
        }

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """Connect to the first server that answers, of all that are known; for our own requests.

        Raises:
            BusError: None does; the text is about the last one, or about one that refuses us.
        """
        failed: BusError | None = None
        servers = dict.fromkeys([*map(tuple, self.bridge.servers), *self._learnt])
        for host, port in servers:
            conn = None
            try:
                conn = await create_conn(
                    host,
                    port,
                    client_id=self.client_id,
                    request_timeout_ms=int(REQUEST_TIMEOUT * 1000),
                    **self._options(),
                )
                # A server that wants a login closes the connection only now
                await conn.send(MetadataRequest([], False))
            except (OSError, errors.KafkaError, TimeoutError, ValueError) as exc:
                if conn is not None:
                    conn.close()
                if not isinstance(failed, BusMisconfigured):
                    failed = self._unreachable(exc, f"{host}:{port}")
                continue
            try:
                yield conn
                return
            finally:
                conn.close()
        raise failed or BusUnavailable(f"bridge {self.bridge.name!r} has no servers")

    def _options(self) -> dict[str, Any]:
        bridge = self.bridge
        login = "SASL_" if bridge.username else ""
        protocol = "SSL" if bridge.is_encrypted else "PLAINTEXT"
        options: dict[str, Any] = {"security_protocol": login + protocol}
        if bridge.is_encrypted:
            options["ssl_context"] = self._tls_context()
        if bridge.username:
            options["sasl_mechanism"] = bridge.sasl
            options["sasl_plain_username"] = bridge.username
            options["sasl_plain_password"] = Secret(bridge.password)
        return options

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls_context(self.bridge)
        return self._tls

    def _unreachable(self, exc: Exception, server: str) -> BusError:
        """Return what to tell about a server that could not be connected to."""
        bridge, where = self.bridge, f"Kafka at {server}"
        tls = tls_error(exc)
        if tls is not None:
            return tls_flaw(tls, where, bridge)
        if isinstance(exc, LOGIN_ERRORS):
            return BusMisconfigured(
                f"{where} rejected the login of user {bridge.username!r} with {bridge.sasl}; "
                f"correct 'username', 'password' or 'sasl' of bridge {bridge.name!r}"
            )
        if isinstance(exc, errors.UnsupportedSaslMechanismError):
            return BusMisconfigured(
                f"{where} does not allow logins with {bridge.sasl}; change 'sasl' of bridge "
                f"{bridge.name!r}, or the port in its 'url'"
            )
        if isinstance(exc, errors.IllegalSaslStateError):
            return BusMisconfigured(
                f"{where} does not allow logins at this port; change the port in 'url' of bridge "
                f"{bridge.name!r}, or remove its 'username' and 'password'"
            )
        if isinstance(exc, (errors.KafkaConnectionError, ConnectionResetError)):
            expected = "TLS" if bridge.is_encrypted else "no TLS"
            expected += ", with a login" if bridge.username else ", without a login"
            return BusUnavailable(
                f"{where} closed the connection; bridge {bridge.name!r} uses {expected}: check "
                "that this port expects the same"
            )
        is_late = isinstance(exc, TimeoutError)
        reason = f"no answer within {REQUEST_TIMEOUT:g} s" if is_late else said(exc)
        return BusUnavailable(
            f"cannot reach {where}: {reason}; check that Kafka is running, and the servers in "
            f"'url' of bridge {bridge.name!r}"
        )


def user_of(bridge: Bridge) -> str:
    """Return how errors call the user whom *bridge* logs in as."""
    return f"user {bridge.username!r}" if bridge.username else f"the user of bridge {bridge.name!r}"


def said(exc: BaseException) -> str:
    """Return what aiokafka says of an error, in one line, with addresses as people write them."""
    return _CONNECTION.sub(r"\1:\2", reason_of(exc))


def translate(exc: BaseException, what: str, bridge: Bridge, right: str = "") -> BusError:
    """Return our error for one of aiokafka's.

    Args:
        exc: What it raised.
        what: What failed, for the text: ``cannot write to ws.send.orders``.
        bridge: The bridge's configuration.
        right: Which right on a topic it needs: ``Write on topic 'ws.send.orders'``.
    """
    if isinstance(exc, RIGHT_ERRORS):
        if isinstance(exc, errors.GroupAuthorizationFailedError):
            right = f"Read on group {bridge.group!r}"
        elif isinstance(exc, errors.ClusterAuthorizationFailedError):
            right += "; before Kafka 2.8, also IdempotentWrite on the cluster"
        return BusMisconfigured(
            f"{what}: {user_of(bridge)} lacks a right in Kafka; grant it {right}"
        )
    if isinstance(exc, errors.InvalidTopicError):
        return BusMisconfigured(
            f"{what}: Kafka does not allow this topic name; change WSGATEWAY_PREFIX, or the name "
            "of the service"
        )
    if isinstance(exc, (TimeoutError, errors.KafkaTimeoutError)):
        return BusUnavailable(
            f"{what}: Kafka did not answer in time; if this persists, check that this machine can "
            "reach the addresses in Kafka's advertised.listeners"
        )
    return BusUnavailable(f"{what}: {said(exc)}")
