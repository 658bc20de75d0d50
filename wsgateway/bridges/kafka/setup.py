"""Creates the Kafka topics of a bridge, for operators."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.metadata import MetadataRequest

from wsgateway.bridges.kafka.access import translate
from wsgateway.exceptions import BusMisconfigured, BusUnavailable

if TYPE_CHECKING:
    from wsgateway.bridges.kafka.access import Access

__all__ = ["create_topics"]

TIMEOUT = 30.0
LIMIT = "max.message.bytes"
REPLICAS = 3
"""How many servers keep a topic if nobody says; fewer if the cluster has fewer."""
REFUSALS = (
    errors.InvalidReplicationFactorError,
    errors.InvalidTopicError,
    errors.PolicyViolationError,
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
)


async def create_topics(access: Access, limits: Mapping[str, int]) -> list[str]:
    """Create those of the topics that are missing. See `Bus.set_up`.

    Args:
        access: How to reach the cluster.
        limits: Bytes of a batch that each topic must take, by its name.
    """
    names = list(limits)
    # A connection of our own says why there is none; aiokafka's client does not
    async with access.connection() as conn:
        admin = AIOKafkaAdminClient(**access.client_options())
        try:
            async with asyncio.timeout(TIMEOUT):
                servers, existing = await _look(conn, names)
                await admin.start()
                missing = set(names) - existing.keys()
                created = await _create(
                    access, admin, {name: limits[name] for name in missing}, servers
                )
                found = await _limits(admin, existing)
                await _wait_for(conn, created)
        except (errors.KafkaError, OSError, TimeoutError) as exc:
            raise translate(exc, "cannot create topics") from exc
        finally:
            await admin.close()
    lines = []
    for name in names:
        if name in created:
            lines.append(f"created topic {name}: {created[name]}")
            continue
        partitions = existing.get(name, ())
        replicas = len(partitions[0][3]) if partitions else "?"
        line = f"topic {name} exists: {len(partitions)} partitions, replication {replicas}"
        limit = found.get(name)
        if limit is not None and limit < limits[name]:
            line += f"; its {LIMIT} of {limit} is less than {limits[name]}, so raise it"
        lines.append(line)
    return lines


async def _look(conn: Any, names: Iterable[str]) -> tuple[int, dict[str, Any]]:
    """Return how many servers there are, and the partitions of each topic that exists."""
    metadata = await conn.send(MetadataRequest(list(names), False))
    return len(metadata.brokers), {topic[1]: topic[3] for topic in metadata.topics if topic[3]}


async def _wait_for(conn: Any, names: Collection[str]) -> None:
    """Return once this server has heard of these topics, and each partition has a leader."""
    while True:
        _, topics = await _look(conn, names)
        leaders = [partition[2] for partitions in topics.values() for partition in partitions]
        if len(topics) == len(names) and min(leaders, default=0) >= 0:
            return
        await asyncio.sleep(0.05)


async def _create(
    access: Access, admin: Any, missing: Mapping[str, int], servers: int
) -> dict[str, str]:
    """Create topics; return how, by name. One that another process creates now is left out."""
    bridge = access.bridge
    replication = bridge.replication or min(REPLICAS, servers)
    synced = 2 if replication > 2 else 1
    least = {"min.insync.replicas": str(synced)}
    if not missing:
        return {}
    topics = [
        NewTopic(name, bridge.partitions, replication, None, least | {LIMIT: str(limit)})
        for name, limit in missing.items()
    ]
    answer = await admin.create_topics(topics)
    created = {}
    for name, code, *text in answer.topic_errors:
        error = errors.for_code(code)
        if error is errors.TopicAlreadyExistsError:
            continue
        if error is not errors.NoError:
            reason = next(filter(None, text), None) or error.__name__
            kind = BusMisconfigured if issubclass(error, REFUSALS) else BusUnavailable
            raise kind(f"Kafka does not create the topic {name!r}: {reason}")
        created[name] = (
            f"{bridge.partitions} partitions, replication {replication}, "
            f"min.insync.replicas {synced}"
        )
    return created


async def _limits(admin: Any, names: Iterable[str]) -> dict[str, int]:
    """Return how large a batch of records each topic takes; without those that we may not ask."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name, {LIMIT: None}) for name in names]
    if not wanted:
        return {}
    found = {}
    for answer in await admin.describe_configs(wanted):
        for code, _, _, name, entries in answer.resources:
            if not code and entries:
                found[name] = int(entries[0][1])
    return found
