"""Full channels of other processes: their owners say so, and senders raise `ChannelFull`.

Asking before each message would cost a round trip. So a message says where its sender hears
more; there the owner of the channel answers when it is full, and again once there is room. What
is sent before that answer has come is dropped, as the specification allows. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

__all__ = ["Complaints", "FullChannels"]

VALID = 1.0
"""Seconds that a channel is taken for full without being told again; then a message probes it."""
AGAIN = 0.5
"""Seconds after which a sender that goes on is told again."""
MOST = 10_000
"""Channels that are remembered to be full."""
_FULL, _ROOM = b"-", b"+"


class FullChannels:
    """What this process's senders have heard of other processes' channels. From any thread."""

    def __init__(self) -> None:
        self.until: dict[bytes, float] = {}
        """Name to when that is not to be believed any more."""

    def __contains__(self, name: bytes) -> bool:
        until = self.until.get(name)
        if until is None:
            return False
        if until > monotonic():
            return True
        self.until.pop(name, None)
        return False

    def hear(self, data: bytes) -> None:
        """Take what an owner says; anything else means nothing."""
        word, name = data[:1], data[1:]
        if word == _ROOM:
            self.until.pop(name, None)
        elif word == _FULL and name:
            if len(self.until) >= MOST:
                self.until.clear()
            self.until[name] = monotonic() + VALID


class Complaints:
    """What a process has told others about its own full channels. In the local channels' loop.

    Args:
        tell: Publishes to one sender: subject, data.
    """

    def __init__(self, tell: Callable[[str, bytes], object]) -> None:
        self.told: dict[bytes, dict[bytes, float]] = {}
        """Full channel to sender to when it was told last; from other threads only to look."""
        self._tell = tell

    def full(self, name: bytes, sender: bytes) -> None:
        """Tell *sender* that *name* takes no more messages."""
        told = self.told.setdefault(name, {})
        now = monotonic()
        if now - told.get(sender, -AGAIN) >= AGAIN:
            told[sender] = now
            self._tell(sender.decode(), _FULL + name)

    def room(self, name: bytes) -> None:
        """Tell those who know that *name* is full that it is not any more."""
        for sender in self.told.pop(name, ()):
            self._tell(sender.decode(), _ROOM + name)
