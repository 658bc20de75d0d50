"""Brings server and streams to what the settings want, after each connect and ever after."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from wsgateway.broker.bus import Callbacks, Closable
from wsgateway.broker.embedded import LEAST_VERSION
from wsgateway.broker.nats.jetstream import JetStream, PeerOffline
from wsgateway.broker.nats.levels import Levels
from wsgateway.broker.nats.log import NatsLog
from wsgateway.broker.nats.registry import Registry
from wsgateway.broker.nats.streams import Streams
from wsgateway.exceptions import (
    BrokerClosed,
    BrokerError,
    BrokerMisconfigured,
    BrokerUnavailable,
    reason_of,
)
from wsgateway.supervision import supervise

__all__ = ["OFFER_HEADERS", "Readiness"]

logger = logging.getLogger("wsgateway.broker")

OFFER_HEADERS = 4096
"""Bytes of headers that a client's message has at most: its ids, device and resolver, escaped."""
RETRY_EACH = 0.25
"""Seconds until streams that are not ready yet are checked again."""
RECHECK = 5.0
"""Seconds until a misconfigured server is checked again."""
LOOK_EACH = 30.0
"""Seconds between two looks at the streams, if nothing gives reason to look sooner."""
LOOK_EACH_NEARLY_FULL = 2.0
"""The same while one is nearly full: publishers notice that soon."""
LOOK_PAUSE = 0.5
"""Seconds between two looks, however much reason there is."""


class Readiness:
    """Whether the server and its streams are as the settings want.

    Args:
        jetstream: The server.
        streams: Checked after each connect, then watched.
        services: Read from the streams.
        inboxes: Told what the server says of their stream.
        levels: Told how full each stream is.
        max_message_size: Bytes of a client's message that the server should take.
    """

    def __init__(
        self,
        jetstream: JetStream,
        streams: Streams,
        services: Registry,
        inboxes: NatsLog,
        levels: Levels,
        max_message_size: int,
    ) -> None:
        self._connection = jetstream.connection
        self._streams = streams
        self._services = services
        self._inboxes = inboxes
        self._levels = levels
        self._patience = jetstream.publish_timeout
        self._max_message_size = max_message_size
        self._told = -1  # `largest_offer` that the log has a warning of
        self._checked = asyncio.Event()  # since the last connect: ready, or there is a problem
        self.problem: BrokerMisconfigured | None = None
        """Why it does not become ready."""
        self._delay = ""  # why it is not ready yet, as far as known
        self._preparing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._suspicion = asyncio.Event()  # a stream may be gone
        self._created: dict[str, str] = {}  # stream to what names its life
        self._on_ready = Callbacks("a broker that became ready")
        jetstream.on_missing = levels.on_warning = self.look_soon

    # -- life cycle ----------------------------------------------------------------------

    def open(self) -> None:
        """Check after each connect from now on."""
        self._connection.on_open(self._on_open)
        self._connection.on_lost(self._on_lost)
        self._watching = supervise(self._watch_streams, "wsgateway-streams")
        if self._connection.is_open:
            self._on_open()

    async def close(self) -> None:
        """End all tasks; those who wait find the connection closed."""
        tasks = {task for task in (self._preparing, self._watching) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self.problem = None
        self._checked.set()

    def look_soon(self) -> None:
        """Look at the streams soon: one may be gone, or nearly full."""
        self._suspicion.set()

    def _on_open(self) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
        self._preparing = supervise(self._prepare, "wsgateway-prepare")

    def _on_lost(self) -> None:
        self._checked.clear()
        self.problem = None  # the next server may be another
        self._delay = ""

    # -- for those who wait --------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether the server is connected and its streams are as wanted."""
        return self._checked.is_set() and self.problem is None and self._connection.is_open

    async def wait(self, timeout: float | None = None) -> None:
        """See `Broker.wait_ready`."""
        if self.is_ready:
            return
        if self.problem is not None:
            raise self.problem
        limit = self._patience if timeout is None else timeout
        deadline = asyncio.get_running_loop().time() + limit
        # First and alone: its error says why it is not connected
        await self._connection.ready(timeout)
        try:
            async with asyncio.timeout_at(deadline):
                await self._checked.wait()
        except TimeoutError as exc:
            await self._connection.ready(0)  # lost in between?
            raise BrokerUnavailable(
                f"the streams at {self._connection.address} were not ready within {limit:g} s: "
                f"{self._delay or 'no answer yet'}"
            ) from exc
        await self._connection.ready(0)  # woken by close?
        if self.problem is not None:
            raise self.problem

    def on_ready(self, callback: Callable[[], None]) -> Closable:
        """See `Broker.on_ready`."""
        return self._on_ready.add(callback)

    # -- after a connect -----------------------------------------------------------------

    async def _prepare(self) -> None:
        """Check server and streams until they are as wanted; then announce ready."""
        self.warn_of_limit()
        while True:
            try:
                await self._check()
                break
            except BrokerMisconfigured as exc:
                if str(exc) != str(self.problem):
                    logger.error("%s", reason_of(exc))
                self.problem = exc
                self._checked.set()
            except BrokerClosed:
                return
            except BrokerError as exc:
                if not self._connection.is_open:
                    return  # the next connection prepares again
                self._note_delay(exc)
            await asyncio.sleep(RECHECK if self.problem else RETRY_EACH)
        self.problem = None
        self._checked.set()
        self._on_ready.call()

    def _note_delay(self, exc: BrokerError) -> None:
        """Log what keeps the streams from being ready, each reason once."""
        if str(exc) != self._delay:
            level = logging.DEBUG if isinstance(exc, BrokerUnavailable) else logging.ERROR
            if isinstance(exc, PeerOffline):  # an operator can start the server
                level = logging.WARNING
            logger.log(level, "the streams are not ready yet: %s", reason_of(exc))
        self._delay = str(exc)

    async def _check(self) -> None:
        self.require_server()
        await self._services.refresh()
        self._services.require_one_kind()
        infos, created = await self._streams.ensure_all()
        self._created = {name: info["created"] for name, info in infos.items()}
        for info in infos.values():
            self._levels.note(info)
        if created:
            await self._services.refresh()
            self._services.announce()
        if self._inboxes.name in infos:
            self._inboxes.learn(infos[self._inboxes.name])

    def require_server(self) -> None:
        """Refuse a server that lacks what is needed.

        Raises:
            BrokerMisconfigured: It is too old, or runs without JetStream.
        """
        address, server = self._connection.address, self._connection.server
        if server.version < LEAST_VERSION:
            raise BrokerMisconfigured(
                f"NATS {'.'.join(map(str, server.version))} at {address} is too old: batched "
                "direct get and per-message TTL need 2.11 or later; upgrade the server"
            )
        if not server.has_jetstream:
            raise BrokerMisconfigured(
                f"NATS at {address} runs without JetStream; start it with -js"
            )

    @property
    def largest_offer(self) -> int:
        """See `Broker.largest_offer`."""
        return max(0, self._connection.max_payload - OFFER_HEADERS)

    def warn_of_limit(self) -> None:
        """Log if the server takes less than the settings promise to clients."""
        if self.largest_offer < self._max_message_size and self._told != self.largest_offer:
            self._told = self.largest_offer
            logger.warning(
                "NATS at %s takes messages of %s bytes with their headers, so clients may send %s "
                "bytes only, not WSGATEWAY_MAX_MESSAGE_SIZE (%s). Set max_payload to %s or more in "
                "the server's configuration, or lower the setting",
                self._connection.address,
                self._connection.max_payload,
                self.largest_offer,
                self._max_message_size,
                self._max_message_size + OFFER_HEADERS,
            )

    # -- ever after ----------------------------------------------------------------------

    async def _watch_streams(self) -> None:
        """Notice streams that are gone or were replaced, and prepare again."""
        while True:
            pause = LOOK_EACH_NEARLY_FULL if self._levels.are_high else LOOK_EACH
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._suspicion.wait()
            self._suspicion.clear()
            try:
                if self.is_ready:
                    await self._look()
            except BrokerClosed:
                return
            except BrokerError as exc:
                logger.debug("cannot check the streams now: %s", reason_of(exc))
            await asyncio.sleep(LOOK_PAUSE)

    async def _look(self) -> None:
        infos = await self._streams.infos()
        for name in self._streams.watched:
            infos[name] = await self._streams.own_info(name)
        for info in infos.values():
            if info is not None:
                self._levels.note(info)
        found = {name: info["created"] for name, info in infos.items() if info is not None}
        changed = [name for name, created in self._created.items() if found.get(name) != created]
        if not changed or not self.is_ready:
            return
        logger.error("setting up streams that are gone or were replaced: %s", ", ".join(changed))
        self._checked.clear()
        self._delay = "a stream is gone"
        self._on_open()
