"""Channels' group names for inboxes, both ways. Pure.

Channels allows letters, digits, ``-``, ``_`` and ``.`` in a group's name, and 99 characters. If
service and user are made of letters, digits, ``-`` and ``_``, the name is ``<service>.<user>``.
Otherwise it is ``<service>..<user>`` with every other byte of their UTF-8 form as ``.XX``
(upper-case hexadecimal). An escaped name never holds ``..``, so the first one is where the
service ends, and two inboxes never share a group.
"""

from __future__ import annotations

from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Inbox, decode_token, encode_token

__all__ = ["MAX_GROUP_NAME", "inbox_group", "inbox_of_group", "meant_services"]

MAX_GROUP_NAME = 99
"""Characters in a group's name that Channels allows."""
SERVICES_KEPT = 1000
meant_services: set[str] = set()
"""Services that this process has named in `inbox_group`: a group of theirs is meant to be stored,
whereas ``chat.lobby`` may be an application's own. `SERVICES_KEPT` at most."""


def inbox_group(service: str, user: str) -> str:
    """Return the name of the Channels group whose messages are stored for *user*.

    For every service and user that the gateway accepts, but for the longest: ``"orders.ann"``,
    ``"orders..ann.2Esmith"``. If the service does not exist, the channel layer warns about the
    group, once for each service, and does not store its messages.

    Raises:
        NameRefused: The gateway does not accept these names, or they are too long for a group's
            name; `wsgateway.send` takes them.
    """
    name = _group_name(service, user)
    if service not in meant_services and len(meant_services) < SERVICES_KEPT:
        meant_services.add(service)
    return name


def _group_name(service: str, user: str) -> str:
    tokens = encode_token(service), encode_token(user)
    is_plain = tokens == (service, user)
    name = ("." if is_plain else "..").join(token.replace("=", ".") for token in tokens)
    if len(name) > MAX_GROUP_NAME:
        raise NameRefused(
            f"the group's name for user {user[:40]!r} of {service[:40]!r} has {len(name)} "
            f"characters, but Channels allows {MAX_GROUP_NAME}; "
            "use wsgateway.send(service, user, …)"
        )
    return name


def inbox_of_group(group: str) -> Inbox | None:
    """Return the inbox that a group's name means; None if it means none."""
    service, separator, user = group.partition("..")
    if separator:
        try:
            inbox = Inbox(_name(service), _name(user))
            # What needs no escape has the short form only
            return inbox if _group_name(*inbox) == group else None
        except NameRefused:
            return None
    service, dot, user = group.partition(".")
    return Inbox(service, user) if dot and service and user and "." not in user else None


def _name(escaped: str) -> str:
    return decode_token(escaped.replace(".", "="))
