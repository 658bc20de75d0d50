"""A group's members in this process, and how its messages reach them."""

from __future__ import annotations

import logging

from wsgateway.broker.bus import Closable
from wsgateway.layer.mailbox import Mailbox
from wsgateway.layer.subscription import DurableItem, Subscription
from wsgateway.protocol.subjects import Inbox

__all__ = ["Group", "Item"]

logger = logging.getLogger("wsgateway.layer")

Item = bytes | DurableItem
"""What a mailbox holds: an envelope, or a message of a durable group."""


class Group:
    """The members that one process has in one group.

    Args:
        name: The group's.
        inbox: Where its messages are stored; None if they are not.
    """

    __slots__ = ("confirmed", "inbox", "interests", "members", "name", "normal", "subscriptions")

    def __init__(self, name: str, inbox: Inbox | None) -> None:
        self.name = name
        self.inbox = inbox
        self.members: dict[bytes, Mailbox[Item]] = {}
        """Process-specific channels by name."""
        self.interests: dict[bytes, Closable] = {}
        """Subscriptions: b"" brings messages to all `members`, others to a normal channel."""
        self.confirmed: dict[bytes, int] = {}
        """Which of both are in effect, with the number of the connection."""
        self.normal: set[str] = set()
        """Normal channels."""
        self.subscriptions: dict[bytes, Subscription] = {}
        """What brings a durable group's messages to each of `members`."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody is in it."""
        return not self.members and not self.normal

    def deliver(self, item: Item) -> None:
        """Put *item* into every member's mailbox; full ones miss it, and the log says so."""
        full = 0
        for mailbox in self.members.values():
            if not mailbox.put(item):
                full += 1
        if full:
            logger.info(
                "%s of %s channels over capacity in group %s", full, len(self.members), self.name
            )

    def close(self) -> list[Closable]:
        """Forget everybody; return what is to be closed in the loop that made it."""
        interests = self.pause()
        self.members.clear()
        self.normal.clear()
        self.subscriptions.clear()
        return interests

    def pause(self) -> list[Closable]:
        """Return what is to be closed in the loop that made it; who is a member stays known."""
        attached = [each.attachment for each in self.subscriptions.values()]
        interests: list[Closable] = [*self.interests.values()]
        interests += [attachment for attachment in attached if attachment is not None]
        self.interests.clear()
        self.confirmed.clear()
        return interests
