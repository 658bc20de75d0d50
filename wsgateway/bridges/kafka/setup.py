"""Creates the Kafka topics of a bridge, for operators."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.metadata import MetadataRequest

from wsgateway.bridges.kafka.access import RIGHT_ERRORS, translate, user_of
from wsgateway.bridges.steps import Steps
from wsgateway.exceptions import BusError, BusMisconfigured, BusUnavailable

if TYPE_CHECKING:
    from wsgateway.bridges.config import Bridge
    from wsgateway.bridges.kafka.access import Access

__all__ = ["create_topics"]

TIMEOUT = 30.0
LIMIT = "max.message.bytes"
REPLICAS = 3
"""How many servers keep a topic if nobody says; fewer if the cluster has fewer."""
REFUSALS = {
    errors.InvalidReplicationFactorError: "; correct 'replication' of bridge {bridge!r}",
    errors.InvalidTopicError: "; change WSGATEWAY_PREFIX, or the name of the service",
    errors.PolicyViolationError: "; create it as your cluster's policy demands",
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
                seen = await _look(conn, names)
                existing = dict(seen.topics)
                await admin.start()
                missing = {name: limits[name] for name in names if name not in existing}
                created = await _create(access, admin, missing, seen)
                found = await _limits(admin, existing)
                there = [name for name in missing if not isinstance(created[name], BusError)]
                appeared = await _wait_for(conn, there)
                existing |= appeared.topics
        except (errors.KafkaError, OSError, TimeoutError) as exc:
            raise translate(exc, "cannot create topics", access.bridge) from exc
        finally:
            await admin.close()
    steps = Steps()
    for name in names:
        outcome = created.get(name)
        if isinstance(outcome, BusError):
            steps.fail(outcome)
            continue
        if outcome:
            steps.lines.append(f"created topic {name}: {outcome}")
        if name in appeared.hidden:
            steps.fail(
                BusMisconfigured(
                    f"{user_of(access.bridge)} may create topic {name!r} in Kafka, but not see it; "
                    "grant it Describe on the topic"
                )
            )
        if outcome or name in appeared.hidden:
            continue
        partitions = existing[name]
        replicas = len(partitions[0][3])
        line = f"topic {name} exists: {_partitions(len(partitions))}, replication {replicas}"
        limit = found.get(name)
        if limit is not None and limit < limits[name]:
            line += f"; its {LIMIT} is {limit}: raise it to {limits[name]} or more"
        steps.lines.append(line)
    return steps.result()


class _Seen(NamedTuple):
    """What a server knows of some topics.

    Attributes:
        servers: How many there are.
        topics: The partitions of each topic that exists, by its name.
        hidden: Topics that the user may not see, whether they exist or not.
    """

    servers: int
    topics: dict[str, Any]
    hidden: set[str]


async def _look(conn: Any, names: Iterable[str]) -> _Seen:
    metadata = await conn.send(MetadataRequest(list(names), False))
    topics = {topic[1]: topic[3] for topic in metadata.topics if topic[3]}
    refused = errors.TopicAuthorizationFailedError.errno
    return _Seen(
        len(metadata.brokers),
        topics,
        {topic[1] for topic in metadata.topics if topic[0] == refused},
    )


async def _wait_for(conn: Any, names: Collection[str]) -> _Seen:
    """Return what this server knows once it knows all these topics, and all have a leader."""
    while True:
        seen = await _look(conn, names)
        leaders = [partition[2] for partitions in seen.topics.values() for partition in partitions]
        if len(seen.topics) + len(seen.hidden) == len(names) and min(leaders, default=0) >= 0:
            return seen
        await asyncio.sleep(0.05)


def _partitions(count: int) -> str:
    return f"{count} partition{'s' if count != 1 else ''}"


async def _create(
    access: Access, admin: Any, missing: Mapping[str, int], seen: _Seen
) -> dict[str, str | BusError]:
    """Create topics; return how, or why not, by name; "" if another process has created it."""
    bridge = access.bridge
    replication = bridge.replication or min(REPLICAS, seen.servers)
    synced = 2 if replication > 2 else 1
    least = {"min.insync.replicas": str(synced)}
    if not missing:
        return {}
    topics = [
        NewTopic(name, bridge.partitions, replication, None, least | {LIMIT: str(limit)})
        for name, limit in missing.items()
    ]
    answer = await admin.create_topics(topics)
    created: dict[str, str | BusError] = {}
    for name, code, *text in answer.topic_errors:
        error = errors.for_code(code)
        if error is errors.TopicAlreadyExistsError:
            created[name] = ""
        elif error is not errors.NoError:
            reason = next(filter(None, text), None) or error.__name__
            created[name] = _refused(bridge, name, error, reason, is_hidden=name in seen.hidden)
        else:
            created[name] = (
                f"{_partitions(bridge.partitions)}, replication {replication}, "
                f"min.insync.replicas {synced}"
            )
    return created


def _refused(
    bridge: Bridge, topic: str, error: type[Exception], reason: str, *, is_hidden: bool
) -> BusError:
    """Return why Kafka has not created a topic, and what to do."""
    if issubclass(error, RIGHT_ERRORS) and is_hidden:
        return BusMisconfigured(
            f"{user_of(bridge)} may neither see nor create topic {topic!r} in Kafka; grant it "
            "Describe on the topic if it exists, or Create and Describe if it does not"
        )
    if issubclass(error, RIGHT_ERRORS):
        return BusMisconfigured(
            f"{user_of(bridge)} may not create topic {topic!r} in Kafka; grant it Create on the "
            "topic, or on the cluster"
        )
    kind = BusMisconfigured if error in REFUSALS else BusUnavailable
    cure = REFUSALS.get(error, "").format(bridge=bridge.name)
    return kind(f"Kafka refused to create topic {topic!r}: {reason.rstrip('.')}{cure}")


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
