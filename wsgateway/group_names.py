"""Channels' group names for inboxes, both ways. Pure.

Channels allows letters, digits, ``-``, ``_`` and ``.`` in a group's name, and 99 characters. If
service and user are made of letters, digits, ``-`` and ``_``, the name is ``<service>.<user>``.
Otherwise it is ``<service>..<user>`` with every other byte of their UTF-8 form as ``.XX``
(upper-case hexadecimal). An escaped name never holds ``..``, so the first one is where the
service ends, and two inboxes never share a group.
"""

from __future__ import annotations

from wsgateway.exceptions import NameRefused
from wsgateway.subjects import Inbox, decode_token, encode_token

__all__ = ["MAX_GROUP_NAME", "inbox_group", "inbox_of_group"]

MAX_GROUP_NAME = 99
"""Characters in a group's name that Channels allows."""


def inbox_group(service: str, user: str) -> str:
    """Return the name of the Channels group whose messages are stored for *user*.

    For every service and user that the gateway accepts, but for the longest: ``"orders.ann"``,
    ``"orders..ann.2Esmith"``.

    Raises:
        NameRefused: The gateway does not accept these names, or they are too long for a group's
            name; `wsgateway.send` takes them.
    """
    tokens = encode_token(service), encode_token(user)
    is_plain = tokens == (service, user)
    name = ("." if is_plain else "..").join(token.replace("=", ".") for token in tokens)
    if len(name) > MAX_GROUP_NAME:
        raise NameRefused(
            f"the group's name for user {user[:40]!r} of {service[:40]!r} has {len(name)} "
            f"characters, Channels allows {MAX_GROUP_NAME}; use wsgateway.send(service, user, …)"
        )
    return name


def inbox_of_group(group: str) -> Inbox | None:
    """Return the inbox that a group's name means; None if it means none."""
    service, separator, user = group.partition("..")
    if separator:
        try:
            inbox = Inbox(_name(service), _name(user))
            # What needs no escape has the short form only
            return inbox if inbox_group(*inbox) == group else None
        except NameRefused:
            return None
    service, dot, user = group.partition(".")
    return Inbox(service, user) if dot and service and user and "." not in user else None


def _name(escaped: str) -> str:
    return decode_token(escaped.replace(".", "="))
