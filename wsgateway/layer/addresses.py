"""Where messages to a channel go."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from wsgateway.protocol.subjects import Subjects

if TYPE_CHECKING:
    from wsgateway.layer.core import NatsChannelLayer

__all__ = ["Address", "Addresses"]

NAMES_KEPT = 10_000
"""Valid names that are remembered, so that they are not checked again."""


class Address(NamedTuple):
    """Where messages to a channel go.

    Attributes:
        subject: Its process's; "" for a normal channel.
        name: The channel's on the wire.
        is_own: Whether the channel is this process's.
    """

    subject: str
    name: bytes
    is_own: bool


class Addresses(dict[str, Address]):
    """Channels' names to their addresses; remembered at the first look.

    Looking for a name that is not valid raises `TypeError`.

    Args:
        layer: Whose channels.
    """

    def __init__(self, layer: NatsChannelLayer) -> None:
        super().__init__()
        self._layer = layer

    def __missing__(self, channel: str) -> Address:
        layer = self._layer
        layer.require_valid_channel_name(channel)
        if "!" in channel:
            owner = channel.partition("!")[0].rpartition(".")[2]
            subject = Subjects(layer.prefix).process(owner or "-")
            found = Address(subject, channel.encode(), owner == layer.client_prefix)
        else:
            found = Address("", channel.encode(), False)
        if len(self) >= NAMES_KEPT:
            self.clear()
        self[channel] = found
        return found
