"""What log lines carry besides their text: fields in ``extra``, with the same names everywhere.

A line is one event and has no line breaks, except for the traceback or stack that follows it.
Payloads, cookies, tokens and passwords are never part of it. ``docs/how-to/logging.md`` lists the
fields.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["FIELDS", "log_with_stack"]

FIELDS: Mapping[str, str] = {
    "gateway": "The id of the gateway process.",
    "worker": "The id of the worker process.",
    "connection": "The socket. Clients read it in their `welcome`, services in the message.",
    "service": "The service; of a refused socket, the one that its path names.",
    "user": "The user's name; of a refused socket, the one that its path names.",
    "user_service": "The service of the user who sent a message to a topic of `service`.",
    "topic": "The topic's name within its service.",
    "device": "The user's device.",
    "code": "The gateway's close code, as `wsgateway.v1` clients get it, or else the client's.",
    "offset": "The message's offset in its inbox or queue; of a dead letter or cursor, its own.",
    "attempt": "Which try of the handler this is; the first is 1.",
    "outcome": "What became of a message: `done`, `retried`, `rejected` or `dead-lettered`.",
    "duration": "How long the handler and what followed took, in seconds.",
    "subject": "The NATS subject.",
    "stream": "The JetStream stream.",
    "channel": "The channel of the channel layer.",
    "group": "The group of the channel layer.",
    "bridge": "The name of the [bridge](bridges.md).",
    "outbox_id": "The primary key of the outbox row.",
}
"""Every field that a log line of the package may have. None is an attribute of `LogRecord`."""


def log_with_stack(
    logger: logging.Logger,
    level: int,
    stack: str,
    text: str,
    *args: object,
    extra: Mapping[str, Any],
) -> None:
    """Log a line followed by *stack*, of another task or thread, where formatters put tracebacks.

    Args:
        logger: Which.
        level: For example ``logging.WARNING``.
        stack: Lines, as `traceback.format_stack` makes them.
        text: The line, with ``%s`` for *args*.
        args: Its arguments.
        extra: Fields of `FIELDS`.
    """
    if not logger.isEnabledFor(level):
        return
    path, line, function, _ = logger.findCaller(stacklevel=2)
    logger.handle(
        logger.makeRecord(
            logger.name,
            level,
            path,
            line,
            text,
            args,
            None,
            function,
            extra,
            f"Stack (most recent call last):\n{stack.rstrip()}",
        )
    )
