"""Signed tokens that carry a right to a topic: who has one subscribes without a question."""

from __future__ import annotations

import time
from typing import NamedTuple, get_args

from django.core import signing

from wsgateway.protocol.endpoint import Access
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.topics.marks import LEEWAY, longest_token
from wsgateway.topics.users import User, parse_user, require_topic

__all__ = ["ACCESSES", "Grant", "read_token", "token", "topic_of"]

SALT = "wsgateway.topics.token"
ACCESSES: tuple[Access, ...] = get_args(Access)


class Grant(NamedTuple):
    """What a token says.

    Attributes:
        access: What its holder may do.
        issued: When it was made, as a Unix time.
    """

    access: Access
    issued: float


def token(
    service: str,
    name: str,
    *,
    user: User,
    access: Access = "read",
    max_age: float | None = None,
) -> str:
    """Return a token with which *user* may subscribe to a topic without being asked for.

    A client passes it when it subscribes. It saves the call of ``allow``, and gives the right even
    if ``allow`` would not. The subscription outlives it; `revoke` ends both.

    Args:
        service: The topic's service.
        name: The topic's name.
        user: The only user whom it serves: a user's name, a Django user, or a pair of service and
            name, as for `revoke`.
        access: ``"read"``, or ``"write"``, which includes reading.
        max_age: Seconds that it is valid, at most WSGATEWAY_TOPIC_TOKEN_MAX_AGE; None: that.

    Raises:
        NameRefused: A name cannot be used.
        ValueError: *access* or *max_age* is out of range.
    """
    topic = require_topic(service, name)
    most = longest_token()
    age = most if max_age is None else max_age
    if not 0 < age <= most:
        raise ValueError(
            f"max_age is {age} s, but must be above 0 and at most {most} s; "
            "see WSGATEWAY_TOPIC_TOKEN_MAX_AGE"
        )
    if access not in ACCESSES:
        raise ValueError(f"access is {access!r}, but must be 'read' or 'write'")
    whom = parse_user(user)
    now = time.time()
    content = [topic.service, topic.name, whom.name, whom.service, access, now, now + age]
    return signing.dumps(content, salt=SALT)


def topic_of(text: str) -> Topic | None:
    """Return the topic that a token is for, any user's; None if it is forged."""
    try:
        service, name, *_ = signing.loads(text, salt=SALT)
        return Topic(service, name)
    except Exception:  # as below
        return None


def read_token(text: str, topic: Topic, inbox: Inbox) -> Grant | None:
    """Return what a token gives *inbox*'s user; None if it is not valid, or for something else."""
    try:
        service, name, user, at, access, issued, expires = signing.loads(text, salt=SALT)
    except Exception:  # base64, zlib, JSON: whatever a forged token trips over
        return None
    age = time.time() - issued
    # The settings may be lower by now, and what is revoked is not remembered for longer
    in_time = time.time() < expires and -LEEWAY <= age <= longest_token()
    is_meant = (service, name, user) == (topic.service, topic.name, inbox.user)
    return Grant(access, issued) if in_time and is_meant and at in (None, inbox.service) else None
