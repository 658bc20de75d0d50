"""What the broker and the outbox's table say: the same in every process that asks.

The one that answers a request for metrics asks them, in a thread, within a second or two. What does
not answer is left out, and ``wsgateway_cluster_up`` says so: an operator must not take an old
number, or a zero, for the truth.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import TypeVar

from django.db import connections, router
from django.db.models import Count, Min, Q
from django.utils import timezone

from wsgateway import counters
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.operations import Queue, Stream
from wsgateway.conf import settings
from wsgateway.exceptions import reason_of
from wsgateway.metrics.catalog import CLUSTER
from wsgateway.metrics.families import Families

__all__ = ["ask_cluster"]

logger = logging.getLogger("wsgateway")

T = TypeVar("T")

ANSWER_WITHIN = 2.0
"""Seconds that the broker, and the database, may take."""

Found = tuple[list[Queue], list[Stream]]


def ask_cluster(*, broker: bool = True) -> Families:
    """Return the cluster-wide families. Blocks for `ANSWER_WITHIN` at most; not in a loop.

    Args:
        broker: Whether to ask the broker, too.
    """
    found = Families(CLUSTER)
    rows = _table.begin(_outbox_rows) if settings.is_installed("wsgateway.outbox") else None
    if broker:
        queues_and_streams = _try("the broker", _ask_broker)
        found.add("wsgateway_cluster_up", queues_and_streams is not None, "broker")
        if queues_and_streams is not None:
            _add_queues(found, queues_and_streams[0])
            _add_streams(found, queues_and_streams[1])
    if rows is not None:
        outbox = _try("the outbox's table", lambda: rows.result(ANSWER_WITHIN))
        found.add("wsgateway_cluster_up", outbox is not None, "outbox")
        for database, waiting, failed, age in outbox or ():
            found.add("wsgateway_outbox_rows", waiting, database, "waiting")
            found.add("wsgateway_outbox_rows", failed, database, "failed")
            found.add("wsgateway_outbox_age_seconds", age, database)
    return found


_away: set[str] = set()
"""What did not answer the last time: the log says so once, not at each scrape."""


def _try(what: str, ask: Callable[[], T]) -> T | None:
    try:
        found = ask()
    except Exception as exc:  # a driver of a database raises whatever it likes
        level = logging.DEBUG if what in _away else logging.WARNING
        logger.log(level, "metrics leave out %s: %s", what, reason_of(exc))
        _away.add(what)
        return None
    if what in _away:
        _away.discard(what)
        logger.info("metrics have %s again", what)
    return found


# -- the broker --------------------------------------------------------------------------


def _ask_broker() -> Found:
    connection = runtime.existing()
    return connection.call_sync(lambda: connection.run(_ask, ANSWER_WITHIN), ANSWER_WITHIN)


async def _ask(broker: Broker) -> Found:
    return await broker.operations.queues(), await broker.operations.streams()


def _add_queues(found: Families, queues: list[Queue]) -> None:
    now = dt.datetime.now(dt.UTC)
    for queue in queues:
        age = 0.0 if queue.oldest is None else max((now - queue.oldest).total_seconds(), 0.0)
        found.add("wsgateway_queue_messages", queue.waiting, queue.service)
        found.add("wsgateway_queue_in_flight", queue.in_flight, queue.service)
        found.add("wsgateway_queue_pulls", queue.pulls, queue.service)
        found.add("wsgateway_queue_paused", queue.paused, queue.service)
        found.add("wsgateway_queue_age_seconds", age, queue.service)
        found.add("wsgateway_queue_dead_letters", queue.dead, queue.service)


def _add_streams(found: Families, streams: list[Stream]) -> None:
    for stream in streams:
        found.add("wsgateway_stream_messages", stream.messages, stream.name)
        found.add("wsgateway_stream_bytes", stream.bytes, stream.name)
        found.add("wsgateway_stream_limit_bytes", stream.max_bytes, stream.name)
        found.add("wsgateway_stream_limit_messages", stream.max_messages, stream.name)
        found.add("wsgateway_stream_healthy", not stream.last_error, stream.name)


# -- the outbox --------------------------------------------------------------------------

Rows = list[tuple[str, int, int, float]]
"""Database, waiting rows, rows set aside, age of the oldest waiting one."""


class _Table:
    """Asks databases in one thread: while one hangs, no further thread waits for it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin again: a forked child has not inherited the thread."""
        self._lock = Lock()
        self._asking: Future[Rows] | None = None

    def begin(self, ask: Callable[[], Rows]) -> Future[Rows]:
        """Return what *ask* will return, or what an earlier call that still runs will."""
        with self._lock:
            if self._asking is None or self._asking.done():
                self._asking = Future()
                args = (self._asking, ask)
                # A daemon: a process that ends must not wait for a database
                Thread(target=_set, args=args, name="wsgateway-metrics-outbox", daemon=True).start()
            return self._asking


def _set(future: Future[Rows], ask: Callable[[], Rows]) -> None:
    try:
        future.set_result(ask())
    except BaseException as exc:
        future.set_exception(exc)


_table = _Table()
runtime.on_fork(_table.forget)


def _outbox_rows() -> Rows:
    from wsgateway.outbox.models import OutboxMessage

    found: Rows = []
    for database in sorted({router.db_for_read(OutboxMessage), *counters.outbox.databases}):
        waiting = Q(failed_at=None)
        try:
            numbers = OutboxMessage.objects.using(database).aggregate(
                waiting=Count("id", filter=waiting),
                failed=Count("id", filter=~waiting),
                oldest=Min("created_at", filter=waiting),
            )
        finally:
            connections[database].close()
        oldest = numbers["oldest"]
        age = 0.0 if oldest is None else max((timezone.now() - oldest).total_seconds(), 0.0)
        found.append((database, numbers["waiting"], numbers["failed"], age))
    return found
