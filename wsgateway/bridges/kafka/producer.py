"""Writes records to Kafka, each confirmed by all replicas that are in sync."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aiokafka import AIOKafkaProducer, errors

from wsgateway.bridges.kafka.access import RIGHT_ERRORS, translate
from wsgateway.bridges.kafka.cluster import named
from wsgateway.bridges.kafka.private import abandon_producer
from wsgateway.bridges.names import Names
from wsgateway.exceptions import BusUnavailable, RecordRefused
from wsgateway.supervision import share, start

if TYPE_CHECKING:
    from wsgateway.bridges.kafka.access import Access
    from wsgateway.bridges.kafka.cluster import Cluster

__all__ = ["Producer"]

logger = logging.getLogger("wsgateway.bridges")

START_TIMEOUT = 20.0
"""Seconds that a producer has to get its id from Kafka."""
FLUSH_TIMEOUT = 5.0
"""Seconds that a producer has to finish once another has replaced it."""
OVERHEAD = 64 * 1024
"""Bytes of a record besides its payload, at most: its key and headers."""
BATCH = 64 * 1024
"""Bytes of a batch, at first. Kafka refuses a batch as a whole; if it does, they become fewer."""
LEAST = 2048
"""Bytes of a batch, at least."""
MOST = 100_000_000
"""Bytes of a record. Each topic has a limit of its own; Kafka closes the connection at 100 MiB."""
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
HARMLESS = (*RIGHT_ERRORS, errors.KafkaTimeoutError, errors.UnknownTopicOrPartitionError)
"""Errors about one topic. If they used up a number, the next batch for that topic is told so."""


class Producer:
    """A producer of aiokafka that is replaced when it can go no further.

    It is idempotent: while a server is away, it sends again what was not confirmed, in order, and
    Kafka recognises what it has. But when a batch fails for good, it has used up its sequence
    number, and Kafka refuses all later ones of that partition. Only a producer with a new id helps.

    Args:
        access: How to reach the cluster.
        cluster: What is known about it.
    """

    def __init__(self, access: Access, cluster: Cluster) -> None:
        self._access = access
        self._cluster = cluster
        self._producer: Any = None
        self._batch = BATCH
        self._batches: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # each producer's
        self._starting: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[Any]] = set()  # replaced ones that finish
        self._is_closed = False

    async def close(self) -> None:
        """Fail at once what is not confirmed.

        Nobody waits for it any more, and another bridge may send it again, and then what follows.
        To send it after that would break its order.
        """
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
        for task in self._ending:
            task.cancel()
        producer, self._producer = self._producer, None
        if producer is not None:
            await abandon_producer(producer, "the bridge is closing")
        if self._ending:
            await asyncio.wait(list(self._ending))

    async def produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        most: int = MOST,
    ) -> None:
        """Store a record of at most *most* bytes. See `Bus.produce`.

        One that Kafka refuses fails others of its partition, which are tried again.
        """
        size = sum(len(name) + len(text) for name, text in headers)
        size += len(key or b"") + len(value or b"")
        if size > most:
            raise self._too_large(topic, value)
        self._cluster.check([topic])
        producer = self._producer or await self._started()
        try:
            future = await producer.send(topic, value, key, headers=headers)
        except TOO_LARGE as exc:
            raise self._too_large(topic, value) from exc
        except (errors.KafkaError, TimeoutError) as exc:
            raise self._failed(producer, exc, topic) from exc
        try:
            await future
        except TOO_LARGE as exc:
            raise self._batch_refused(producer, topic, value, size) from exc
        except (errors.KafkaError, TimeoutError) as exc:
            raise self._failed(producer, exc, topic) from exc

    async def _started(self) -> Any:
        if self._is_closed:
            raise BusUnavailable("the bridge is closing")
        if self._starting is None:
            self._starting = share(self._start(), "wsgateway-kafka-producer")
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if not self._is_closed:
                raise
        if self._producer is None:
            raise BusUnavailable("the bridge is closing")
        return self._producer

    async def _start(self) -> None:
        producer = AIOKafkaProducer(
            **self._access.client_options(),
            acks="all",
            enable_idempotence=True,
            max_batch_size=self._batch,
            max_request_size=MOST,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await producer.start()
        except BaseException as exc:
            await asyncio.shield(abandon_producer(producer, "not started"))
            if isinstance(exc, (errors.KafkaError, OSError, TimeoutError)):
                what = "cannot start sending to Kafka"
                right = f"Write on {named(self._topics())}"
                raise translate(exc, what, self._access.bridge, right) from exc
            raise
        else:
            self._batches[producer] = self._batch
            self._producer = producer
        finally:
            self._starting = None

    def _topics(self) -> list[str]:
        """Return the topics that the bridge writes to."""
        bridge = self._access.bridge
        names = Names(bridge.prefix)
        sent = [names.send_topic(service) for service in bridge.services if bridge.sends]
        return [*sent, names.dead] if bridge.receives else sent

    def _batch_refused(
        self, producer: Any, topic: str, value: bytes | None, size: int
    ) -> Exception:
        """Return the error for a record, of *size* bytes, of a batch too large for its topic."""
        limit = self._batches[producer]
        is_alone = limit <= LEAST or size >= limit  # then smaller batches do not help
        if self._producer is producer and not is_alone:
            self._batch = max(LEAST, limit // 2)
        self._replace(producer)
        if is_alone:
            return self._too_large(topic, value)
        return BusUnavailable(
            f"a batch exceeded max.message.bytes of Kafka topic {topic!r}; its records are sent "
            "again in smaller batches"
        )

    def _too_large(self, topic: str, value: bytes | None) -> RecordRefused:
        return RecordRefused(
            f"record of {len(value or b'')} bytes, with its headers, exceeds max.message.bytes of "
            f'Kafka topic {topic!r}; raise that limit: "manage.py setup_bridges '
            f'{self._access.bridge.name}" says how far'
        )

    def _failed(self, producer: Any, exc: Exception, topic: str) -> Exception:
        if not isinstance(exc, HARMLESS):
            self._replace(producer)
        what = f"Kafka did not confirm a record for topic {topic!r}"
        return translate(exc, what, self._access.bridge, f"Write on topic {topic!r}")

    def _replace(self, producer: Any) -> None:
        """Let the next call begin with another producer; this one finishes what it can."""
        if self._producer is producer:
            self._producer = None
            ending = _stop(producer, FLUSH_TIMEOUT)
            start(ending, "wsgateway-kafka-producer-end", tasks=self._ending)


async def _stop(producer: Any, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await producer.stop()
    except (errors.KafkaError, OSError, TimeoutError):
        await abandon_producer(producer, f"not confirmed within {timeout:g} s")
    except asyncio.CancelledError:
        await abandon_producer(producer, "the bridge is closing")
        raise
