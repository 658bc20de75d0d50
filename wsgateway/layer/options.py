"""What every channel layer of ours has: its options, and how it writes messages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any, Never

from channels.exceptions import ChannelFull, MessageTooLarge
from channels.layers import BaseChannelLayer

from wsgateway.conf import settings
from wsgateway.layer.config import require_possible, server_urls
from wsgateway.layer.envelopes import Envelopes
from wsgateway.layer.serializers import registry

__all__ = ["ConfiguredLayer", "require_message", "require_no_loop"]

DEFAULT_MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes that a serialized message may have."""


class ConfiguredLayer(BaseChannelLayer):
    """A layer with the options of ``channels_redis``, as far as they make sense.

    Args:
        servers: Where NATS is: URLs, or (host, port) pairs, or dicts with an ``address``; None
            means ``NATS_BROKER_URL``.
        prefix: First token of every subject; None means ``WSGATEWAY_PREFIX``.
        expiry: Seconds from sending after which a message is dropped unread.
        group_expiry: Seconds after which a channel that is not read leaves its groups.
        capacity: Messages that a channel holds.
        channel_capacity: Other capacities, by glob or compiled pattern; the first match counts.
        symmetric_encryption_keys: The first one encrypts, each of them decrypts.
        random_prefix_length: Accepted for channels_redis' sake; nothing needs it here.
        serializer_format: A name in `wsgateway.layer.serializers.registry`.
        hosts: Another name for *servers*, as in channels_redis.
        max_message_size: Bytes of a serialized message above which it is `MessageTooLarge`.
        on_disconnect: Type of a message that each process-specific channel that is in use gets
            when the connection is lost: what is not durable may be missed. None: none.
        on_reconnect: The same for when it is there again.

    The order of the arguments is that of channels_redis. What is an attribute here may also be
    set later: ``expiry``, ``group_expiry``, ``capacity``, ``channel_capacity``, ``prefix``,
    ``max_message_size``, ``on_disconnect``, ``on_reconnect``.

    Raises:
        OptionRefused: An option is unknown, or cannot have this value.
    """

    extensions = ["groups", "flush"]  # noqa: RUF012 - as the specification spells it
    ChannelFull = ChannelFull
    MessageTooLarge = MessageTooLarge

    # Over 40 lines because it names every option
    def __init__(
        self,
        servers: Any = None,
        prefix: str | None = None,
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: Mapping[str | re.Pattern[str], int] | None = None,
        symmetric_encryption_keys: Iterable[str | bytes] | None = None,
        random_prefix_length: int = 0,
        serializer_format: str = "msgpack",
        *,
        hosts: Any = None,
        max_message_size: int = DEFAULT_MAX_MESSAGE,
        on_disconnect: str | None = None,
        on_reconnect: str | None = None,
        **unknown: Never,
    ) -> None:
        require_possible(
            servers=servers,
            hosts=hosts,
            prefix=prefix,
            expiry=expiry,
            group_expiry=group_expiry,
            capacity=capacity,
            channel_capacity=channel_capacity,
            symmetric_encryption_keys=symmetric_encryption_keys,
            serializer_format=serializer_format,
            max_message_size=max_message_size,
            on_disconnect=on_disconnect,
            on_reconnect=on_reconnect,
            **unknown,
        )
        self.group_expiry = group_expiry
        self.on_disconnect = on_disconnect
        self.on_reconnect = on_reconnect
        self._servers = server_urls(servers if servers is not None else hosts)
        self._prefix = prefix
        self.random_prefix_length = random_prefix_length
        serializer = registry.get_serializer(
            serializer_format,
            symmetric_encryption_keys=symmetric_encryption_keys,
            random_prefix_length=0,
            expiry=None,
        )
        self.envelopes = Envelopes(serializer, expiry, max_message_size, self._fetch)
        self._channel_capacity: list[tuple[re.Pattern[str], int]] = []
        self._begin()
        # Only now: setting its attributes changes what was made above
        super().__init__(
            expiry=expiry,  # type: ignore[arg-type]
            capacity=capacity,
            channel_capacity=channel_capacity,  # type: ignore[arg-type]
        )

    def _begin(self) -> None:
        """Make what the layer works with; the options can be read then, but for capacities."""

    def _resized(self) -> None:
        """Let a change of the capacities take effect."""

    def _moved(self) -> None:
        """Let a change of the prefix take effect."""

    async def _fetch(self, claim: bytes) -> bytes | None:
        """Return what *claim*, which was sent in place of a large message, stands for."""
        raise NotImplementedError

    # -- options that may change ---------------------------------------------------------

    @property  # type: ignore[override]
    def expiry(self) -> float:
        """Seconds from sending after which a message is dropped unread."""
        return self.envelopes.expiry

    @expiry.setter
    def expiry(self, expiry: float) -> None:
        require_possible(expiry=expiry)
        self.envelopes.expiry = expiry

    @property
    def max_message_size(self) -> int:
        """Bytes of a serialized message above which it is refused."""
        return self.envelopes.max_message_size

    @max_message_size.setter
    def max_message_size(self, size: int) -> None:
        require_possible(max_message_size=size)
        self.envelopes.max_message_size = size

    @property
    def capacity(self) -> int:
        """Messages that a channel holds."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        require_possible(capacity=capacity)
        self._capacity = capacity
        self._resized()

    @property  # type: ignore[override]  # pairs, which get_capacity wants
    def channel_capacity(self) -> list[tuple[re.Pattern[str], int]]:
        """Other capacities; give a dict or what `compile_capacities` returns."""
        return self._channel_capacity

    @channel_capacity.setter
    def channel_capacity(self, capacities: Any) -> None:
        if isinstance(capacities, Mapping):
            require_possible(channel_capacity=capacities)
            capacities = self.compile_capacities(dict(capacities))
        self._channel_capacity = list(capacities)
        self._resized()

    @property
    def largest_capacity(self) -> int:
        """The most messages that any channel may hold."""
        return max([self._capacity, *(capacity for _, capacity in self._channel_capacity)])

    @property
    def prefix(self) -> str:
        """First token of every subject. To set it is to move to other subjects and streams."""
        return settings.PREFIX if self._prefix is None else self._prefix

    @prefix.setter
    def prefix(self, prefix: str | None) -> None:
        require_possible(prefix=prefix)
        before, self._prefix = self.prefix, prefix
        if self.prefix != before:
            self._moved()

    # -- messages ------------------------------------------------------------------------

    def serialize(self, message: Any) -> bytes:
        """Return *message* as bytes."""
        return self.envelopes.serialize(message)

    def deserialize(self, message: bytes) -> Any:
        """Return what `serialize` was given."""
        return self.envelopes.deserialize(message)


def require_message(message: Any) -> None:
    """Refuse what the other layers refuse.

    Raises:
        AssertionError: As they do.
    """
    if not isinstance(message, dict):
        raise AssertionError("message is not a dict")
    if "__asgi_channel__" in message:
        raise AssertionError("message holds the reserved key __asgi_channel__")


def require_no_loop(name: str) -> None:
    """Refuse a synchronous method that would block a running event loop.

    Args:
        name: The method's; that of its asynchronous twin with ``_sync`` at the end.

    Raises:
        RuntimeError: It would.
    """
    if asyncio._get_running_loop() is not None:
        twin = name.removesuffix("_sync")
        raise RuntimeError(f"{name}() would block the event loop; use `await layer.{twin}(...)`")
