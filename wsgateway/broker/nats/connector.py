"""Connecting: which server to try next, and why the others failed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from nats.errors import Error as NatsError
from nats.errors import NoServersError

from wsgateway.broker.addresses import Address, ServerList
from wsgateway.broker.bus import Handler
from wsgateway.broker.ending import is_ending
from wsgateway.broker.nats.causes import Cause, cause_of, find_stranger
from wsgateway.broker.nats.handshake import DirectClient
from wsgateway.broker.nats.options import ConnectionOptions

__all__ = ["Connector"]

logger = logging.getLogger("wsgateway.broker")

SHOWN = 5
"""Servers whose errors are shown at most."""


class Connector:
    """Makes the connections of a `NatsConnection`, one after the other.

    Args:
        options: Where and how.
        handlers: The owner's; see `DirectClient`.
        on_refusal: The owner's; see `DirectClient`.
    """

    def __init__(
        self,
        options: ConnectionOptions,
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
        self._causes: dict[str, Cause] = {}  # by address, since then
        self._warned: set[Cause] = set()  # those that were logged

    def lost(self, reason: str) -> None:
        """Record that the connection is lost."""
        self._attempts, self._since, self._lost = 0, time.monotonic(), reason
        self._causes.clear()
        self._warned.clear()

    @property
    def address(self) -> str:
        """The configured servers without logins, for messages."""
        return ", ".join(address.netloc for address in self.servers.configured)

    def problem(self) -> str:
        """Return why there is no connection, for errors and the log."""
        if not self._causes:
            return f"cannot reach NATS at {self.address}: {self._lost}; connecting"
        text = f"cannot reach NATS at {self.address}: {self._reasons()} ({self._effort()})"
        cures = dict.fromkeys(cause.cure for cause in self._shown().values() if cause.cure)
        return "; ".join((text, *cures))

    def _effort(self) -> str:
        tries = "1 attempt" if self._attempts == 1 else f"{self._attempts} attempts"
        return f"{tries} in {time.monotonic() - self._since:.1f} s"

    def _reasons(self) -> str:
        if len(self._causes) == 1 and len(self.servers.configured) == 1:
            return next(iter(self._causes.values())).reason
        return "; ".join(f"{server}: {cause.reason}" for server, cause in self._shown().items())

    def _shown(self) -> dict[str, Cause]:
        return dict(list(self._causes.items())[:SHOWN])

    async def connect(self, restore: Callable[[DirectClient], None]) -> DirectClient | None:
        """Try every known server once, until one accepts the connection.

        Args:
            restore: Subscribes a client to what it must receive.

        Returns:
            A client whose subscriptions are confirmed; None if no server accepted it.
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
                await self._note(address, client, exc)
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
            words = client.last_words()
            if not words:
                raise
            raise NatsError(words) from exc
        if client.given_up:  # the error may have come together with the answer
            raise NatsError(client.end_reason)
        if not answered:
            if not client.has_ended():
                raise TimeoutError
            raise NatsError(client.end_reason)

    async def _note(self, address: Address, client: DirectClient, exc: Exception) -> None:
        cause = cause_of(exc, address, self._options, client.server_info)
        if client.was_ignored:
            cause = await find_stranger(address) or cause
        self._causes.pop(address.netloc, None)
        self._causes[address.netloc] = cause
        logger.debug("cannot connect to NATS at %s: %s", address.netloc, cause, exc_info=exc)

    def _warn(self) -> None:
        """Warn once per outage and reason, not once per attempt."""
        causes = set(self._causes.values())
        if not causes <= self._warned and not is_ending():
            self._warned |= causes
            logger.warning("%s (retrying)", self.problem())

    def _say_connected(self) -> None:
        assert self.current is not None
        after = f" after {self._effort()}" if self._causes else ""
        logger.info("connected to NATS at %s%s", self.current.netloc, after)
