"""Writing into the outbox."""

from __future__ import annotations

from typing import Any

from django.db import router

from wsgateway.exceptions import NameRefused
from wsgateway.outbox.models import OutboxMessage
from wsgateway.outbox.schema import naming_the_cure
from wsgateway.outgoing import Outgoing, OutgoingTopic
from wsgateway.tracing import find_tracer

__all__ = ["enqueue", "enqueue_topic"]


def enqueue(service: str, user: str, *, using: str | None = None, **options: Any) -> OutboxMessage:
    """Write a message in the current transaction; it is sent if and only if that commits.

    Args:
        service: The service.
        user: The user's name.
        using: The database; None: as the router says.
        options: text, bytes or json, ttl and headers, as for `wsgateway.send`. There is no
            ``msg_id``: the row names the message.

    Raises:
        NameRefused: A name cannot be part of a subject, or holds a NUL, which PostgreSQL's
            text cannot.
        MessageTooBig: Larger than ``WSGATEWAY_MAX_MESSAGE_SIZE``.
        TypeError: Not exactly one of text, bytes and json; a wrong type; or a ``msg_id``.
        ValueError: The ttl is out of range, a header is malformed, or the text or JSON cannot
            be written as UTF-8.
        ImproperlyConfigured: The table is missing; run ``manage.py migrate``.
    """
    return _enqueue(Outgoing, service, user, using, options)


def enqueue_topic(
    service: str, name: str, *, using: str | None = None, **options: Any
) -> OutboxMessage:
    """Do for a topic what `enqueue` does for a user; it raises the same.

    Args:
        service: The service of the topic.
        name: The topic's name within the service.
        using: The database; None: as the router says.
        options: text, bytes or json, ttl and headers, as for `wsgateway.send_topic`.
    """
    return _enqueue(OutgoingTopic, service, name, using, options)


def _enqueue(
    kind: type[Outgoing] | type[OutgoingTopic],
    service: str,
    name: str,
    using: str | None,
    options: dict[str, Any],
) -> OutboxMessage:
    if "msg_id" in options:
        raise TypeError("the outbox sets msg_id itself; leave it out")
    message = kind(service, name, **options)
    _, frame = message.prepare()
    for each in (service, name):
        if "\0" in each:
            raise NameRefused(f"name {each!r} holds a NUL, which the outbox cannot store")
    tracer = find_tracer()
    trace = {} if tracer is None else tracer.inject()  # where it is written, not where it is sent
    rows = OutboxMessage.objects.using(using)
    with naming_the_cure(using or router.db_for_write(OutboxMessage)):
        return rows.create(
            service=service,
            user=name,
            is_topic=kind is OutgoingTopic,
            payload=frame.payload,
            kind=frame.kind,
            ttl=message.ttl,
            headers={**trace, **(message.headers or {})},
        )
