"""Connecting: which server next, and why the others would not have us."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable

from nats.errors import Error as NatsError
from nats.errors import NoServersError

from wsgateway.broker.addresses import Address, ServerList
from wsgateway.broker.nats.options import LinkOptions
from wsgateway.broker.nats.quirks import DirectClient
from wsgateway.broker.nats.reader import Handler

__all__ = ["Connector"]

logger = logging.getLogger("wsgateway.broker")

SHOWN = 5
"""Servers whose errors are shown at most."""


class Connector:
    """Makes connections for one link, one after the other.

    Args:
        options: Where and how.
        handlers: The link's; see `DirectClient`.
        on_refusal: The link's; see `DirectClient`.
    """

    def __init__(
        self,
        options: LinkOptions,
        handlers: dict[int, Handler],
        on_refusal: Callable[[DirectClient, str], None],
    ) -> None:
        self._options = options
        self._handlers = handlers
        self._on_refusal = on_refusal
        self.servers = ServerList(map(Address.parse, options.servers), discover=options.discover)
        self.current: Address | None = None
        """The server connected to, now or last."""
        self._attempts = 0  # since the connection was lost
        self._since = time.monotonic()  # when it was lost
        self._lost = "not connected yet"  # why
        self._errors: dict[str, str] = {}  # by address, since then
        self._warned: set[str] = set()  # what was said about it

    def lost(self, reason: str) -> None:
        """Note that the connection is gone."""
        self._attempts, self._since, self._lost = 0, time.monotonic(), reason
        self._errors.clear()
        self._warned.clear()

    @property
    def address(self) -> str:
        """The configured servers without logins, for messages."""
        return ", ".join(address.netloc for address in self.servers.configured)

    def problem(self) -> str:
        """Return why there is no connection, for errors and the log."""
        if not self._errors:
            return f"cannot reach NATS at {self.address}: {self._lost}; connecting"
        return f"cannot reach NATS at {self.address}: {self._reasons()} ({self._effort()})"

    def _effort(self) -> str:
        tries = "1 attempt" if self._attempts == 1 else f"{self._attempts} attempts"
        return f"{tries} in {time.monotonic() - self._since:.1f} s"

    def _reasons(self) -> str:
        if len(self._errors) == 1 and len(self.servers.configured) == 1:
            return next(iter(self._errors.values()))
        shown = [f"{server}: {error}" for server, error in list(self._errors.items())[:SHOWN]]
        return "; ".join(shown)

    async def connect(self, restore: Callable[[DirectClient], None]) -> DirectClient | None:
        """Try every known server once, until one takes us.

        Args:
            restore: Subscribes a client to what it must hear.

        Returns:
            A client whose subscriptions are confirmed; None if no server would have us.
        """
        for address in self.servers.order():
            client = DirectClient(
                self._handlers,
                self._on_refusal,
                insists_on_tls=self._options.insists_on_tls(address),
            )
            try:
                await self._try(client, address, restore)
            except Exception as exc:  # whatever it is, the next attempt may go well
                client.abandon()
                self._note(address, exc)
            except BaseException:
                client.abandon()
                raise
            else:
                self.current = address
                self._say_connected()
                return client
        self._warn()
        return None

    async def _try(
        self, client: DirectClient, address: Address, restore: Callable[[DirectClient], None]
    ) -> None:
        options = self._options
        self._attempts += 1
        errors: list[Exception] = []  # nats-py itself raises "no servers" in their place

        async def note(error: Exception) -> None:
            errors.append(error)

        try:
            async with asyncio.timeout(options.connect_timeout * 2):
                await client.connect(
                    servers=[address.url],
                    name=options.name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=options.connect_timeout,
                    ping_interval=86400,
                    error_cb=note,
                    **options.for_nats(address),
                )
                restore(client)
                answered = await client.ping(options.connect_timeout)
        except NoServersError as exc:
            raise errors[0] if errors else exc from None
        except ConnectionError as exc:
            raise ConnectionError(client.last_words() or reason_of(exc)) from exc
        if client.given_up:  # the error may have come together with the answer
            raise ConnectionError(client.end_reason)
        if not answered:
            raise ConnectionError(client.end_reason if client.has_ended() else "no answer")

    def _note(self, address: Address, exc: Exception) -> None:
        reason = reason_of(exc)
        self._errors.pop(address.netloc, None)
        self._errors[address.netloc] = reason
        logger.debug("cannot connect to NATS at %s: %s", address.netloc, reason, exc_info=exc)

    def _warn(self) -> None:
        """Warn once an outage for each reason, not once an attempt."""
        reasons = set(self._errors.values())
        if not reasons <= self._warned:
            self._warned |= reasons
            logger.warning("%s; retrying", self.problem())

    def _say_connected(self) -> None:
        assert self.current is not None
        after = f" after {self._effort()}" if self._errors else ""
        logger.info("connected to NATS at %s%s", self.current.netloc, after)


def reason_of(exc: Exception) -> str:
    """Return why an attempt to connect failed, in a few words and without a secret."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {exc.verify_message}"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused"
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.strerror}: {exc.filename!r}" if exc.filename else exc.strerror
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, (NatsError, ValueError, OSError)) and str(exc):
        return str(exc).removeprefix("nats: ").strip("' ")
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
