"""Creates the Kafka topics of a bridge, for operators."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.metadata import MetadataRequest

from wsgateway.bridges.kafka.access import translate, user_of
from wsgateway.exceptions import BusMisconfigured, BusUnavailable

if TYPE_CHECKING:
    from wsgateway.bridges.kafka.access import Access

__all__ = ["create_topics"]

TIMEOUT = 30.0
LIMIT = "max.message.bytes"
REPLICAS = 3
"""How many servers keep a topic if nobody says; fewer if the cluster has fewer."""
MAY_NOT = "; grant {user} the rights that docs/how-to/bridges.md lists for setup_bridges"
REFUSALS = {
    errors.InvalidReplicationFactorError: "; correct 'replication' of bridge {bridge!r}",
    errors.InvalidTopicError: "; change WSGATEWAY_PREFIX, or the name of the service",
    errors.PolicyViolationError: "; create it as your cluster's policy demands",
    errors.TopicAuthorizationFailedError: MAY_NOT,
    errors.ClusterAuthorizationFailedError: MAY_NOT,
}
"""Why Kafka does not create a topic until an operator has acted, and what to do."""


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
                existing |= await _wait_for(conn, missing)
        except (errors.KafkaError, OSError, TimeoutError) as exc:
            raise translate(exc, "cannot create topics", access.bridge) from exc
        finally:
            await admin.close()
    lines = []
    for name in names:
        if name in created:
            lines.append(f"created topic {name}: {created[name]}")
            continue
        partitions = existing[name]
        replicas = len(partitions[0][3])
        line = f"topic {name} exists: {_partitions(len(partitions))}, replication {replicas}"
        limit = found.get(name)
        if limit is not None and limit < limits[name]:
            line += f"; its {LIMIT} is {limit}: raise it to {limits[name]} or more"
        lines.append(line)
    return lines


async def _look(conn: Any, names: Iterable[str]) -> tuple[int, dict[str, Any]]:
    """Return how many servers there are, and the partitions of each topic that exists."""
    metadata = await conn.send(MetadataRequest(list(names), False))
    return len(metadata.brokers), {topic[1]: topic[3] for topic in metadata.topics if topic[3]}


async def _wait_for(conn: Any, names: Collection[str]) -> dict[str, Any]:
    """Return the partitions of each topic once this server knows it, and all have a leader.

    Raises:
        TopicAuthorizationFailedError: The user may not see one.
    """
    while True:
        metadata = await conn.send(MetadataRequest(list(names), False))
        for code, name, *_ in metadata.topics:
            if code == errors.TopicAuthorizationFailedError.errno:
                raise errors.TopicAuthorizationFailedError(name)
        topics = {topic[1]: topic[3] for topic in metadata.topics if topic[3]}
        leaders = [partition[2] for partitions in topics.values() for partition in partitions]
        if len(topics) == len(names) and min(leaders, default=0) >= 0:
            return topics
        await asyncio.sleep(0.05)


def _partitions(count: int) -> str:
    return f"{count} partition{'s' if count != 1 else ''}"


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
            kind = BusMisconfigured if error in REFUSALS else BusUnavailable
            cure = REFUSALS.get(error, "")
            raise kind(
                f"Kafka refused to create topic {name!r}: {reason.rstrip('.')}"
                + cure.format(user=user_of(bridge), bridge=bridge.name)
            )
        created[name] = (
            f"{_partitions(bridge.partitions)}, replication {replication}, "
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
