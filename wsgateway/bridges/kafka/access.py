"""How a bridge reaches its Kafka cluster, and what its errors mean."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest

from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable, reason_of

if TYPE_CHECKING:
    from wsgateway.bridges.config import Bridge

__all__ = ["REQUEST_TIMEOUT", "RIGHT_ERRORS", "Access", "translate"]

REQUEST_TIMEOUT = 15.0
"""Seconds that a request waits for its answer; also how long a server waits for its replicas."""
RETRY_PAUSE = 0.25
"""Seconds between two tries of a request, and between two looks for a new leader."""
LOGIN_ERRORS = (errors.SaslAuthenticationFailed, errors.AuthenticationFailedError)
MECHANISM_ERRORS = (
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.AuthenticationMethodNotSupported,
)
RIGHT_ERRORS = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
)


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
        raise failed or BusUnavailable("bridge has no servers")

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
            bridge = self.bridge
            try:
                self._tls = ssl.create_default_context(cafile=bridge.ca or None)
                if bridge.cert:
                    self._tls.load_cert_chain(bridge.cert, bridge.key)
            except OSError as exc:
                files = ", ".join(filter(None, (bridge.ca, bridge.cert, bridge.key)))
                raise BusMisconfigured(
                    f"cannot read the certificates of bridge {bridge.name!r} ({files}): "
                    f"{reason_of(exc)}"
                ) from exc
        return self._tls

    def _unreachable(self, exc: Exception, server: str) -> BusError:
        """Return what to tell about a server that could not be connected to."""
        bridge, where = self.bridge, f"Kafka at {server}"
        if isinstance(exc, LOGIN_ERRORS):
            return BusMisconfigured(
                f"{where} refuses the login of {bridge.username!r} with {bridge.sasl}; check the "
                f"username and the password of bridge {bridge.name!r}"
            )
        if isinstance(exc, MECHANISM_ERRORS):
            return BusMisconfigured(
                f"{where} does not take a login with {bridge.sasl}: {reason_of(exc)}; change "
                f"'sasl' of bridge {bridge.name!r}, or the port"
            )
        if isinstance(exc, ssl.SSLCertVerificationError):
            return BusMisconfigured(
                f"{where} has a certificate that cannot be trusted: {exc.verify_message}; name "
                f"the file of its authority in 'ca' of bridge {bridge.name!r}"
            )
        if isinstance(exc, ssl.SSLError):
            return BusMisconfigured(
                f"{where} does not speak TLS with this client: {exc.reason or reason_of(exc)}; "
                "check the port, and 'cert' and 'key'"
            )
        if isinstance(exc, (errors.KafkaConnectionError, ConnectionResetError)):
            return BusUnavailable(
                f"{where} closed the connection; check the port, and whether it wants a login "
                "or TLS"
            )
        if isinstance(exc, TimeoutError):
            return BusUnavailable(f"{where} does not answer within {REQUEST_TIMEOUT:g} s")
        return BusUnavailable(f"cannot reach {where}: {reason_of(exc)}")


def translate(exc: BaseException, what: str) -> BusError:
    """Return our error for one of aiokafka's.

    Args:
        exc: What it raised.
        what: What failed, for the text: ``cannot write to ws.send.orders``.
    """
    if isinstance(exc, RIGHT_ERRORS):
        return BusMisconfigured(
            f"{what}: {type(exc).__name__}; give the bridge's user that right in Kafka"
        )
    if isinstance(exc, errors.InvalidTopicError):
        return BusMisconfigured(f"{what}: Kafka cannot have a topic of that name")
    if isinstance(exc, TimeoutError):
        return BusUnavailable(
            f"{what}: Kafka does not answer; if this goes on, check that this machine can reach "
            "the addresses in Kafka's advertised.listeners"
        )
    return BusUnavailable(f"{what}: {type(exc).__name__}: {reason_of(exc)}")
