"""The streams and the services' queues, as operators see them."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wsgateway.broker.nats.backwards import Place, look
from wsgateway.broker.nats.jetstream import ApiError
from wsgateway.broker.nats.specs import NANO, StreamSpec
from wsgateway.broker.operations import Peer, Queue, Stream
from wsgateway.exceptions import BrokerError, NobodyAnswers

if TYPE_CHECKING:
    from wsgateway.broker.nats.broker import NatsBroker

__all__ = ["Overview"]

SILENCE = 5.0
"""Seconds without a heartbeat, of which there are two a second, after which a server is away."""
MISSING = 'it does not exist; run "manage.py setup_streams"'
PURPOSES = {
    "INBOX": "inboxes",
    "DEAD": "dead letters",
    "CURSOR": "how far devices have read",
    "TRIES": "how often handlers have failed",
    "ROSTER": "which processes there are",
    "CHANNEL": "normal channels of the channel layer",
    "BLOB": "large messages of the channel layer",
}


class Overview:
    """Reads what the leaders say.

    Args:
        broker: Whose streams.
    """

    def __init__(self, broker: NatsBroker) -> None:
        self._broker = broker
        self._subjects = broker.subjects
        self._api = broker.jetstream.api

    # -- streams -------------------------------------------------------------------------

    async def streams(self) -> list[Stream]:
        """See `Operations.streams`."""
        there = await self._broker.services.streams(f"{self._subjects.prefix}.>")
        wanted = {spec.name: spec for spec in self._broker.streams.wanted}
        # The layer makes its own when it needs them; other services' are not among the wanted ones
        names = [name for name, spec in wanted.items() if not spec.grows or name in there]
        names += [name for name in sorted(there) if self._is_service(name) and name not in wanted]
        return await asyncio.gather(*(self._stream(name, wanted.get(name)) for name in names))

    def _is_service(self, name: str) -> bool:
        """Say whether a stream holds messages to services, or topics."""
        subjects = self._subjects
        owners = (subjects.service_of, subjects.service_of_topics, subjects.service_of_casts)
        return name == subjects.stream("send") or any(owner(name) is not None for owner in owners)

    async def _stream(self, name: str, spec: StreamSpec | None) -> Stream:
        """Return what is known of a stream that is there, or should be."""
        service = self._subjects.service_of(name)
        purpose = self._purpose(name, spec)
        try:
            info = await self._broker.streams.own_info(name)
        except BrokerError as exc:
            return Stream(name, purpose, service, last_error=str(exc))
        if info is None:
            return Stream(name, purpose, service, last_error=MISSING)
        config, state = info["config"], info["state"]
        leader, peers = _cluster(info)
        return Stream(
            name,
            purpose,
            service,
            messages=state["messages"],
            bytes=state["bytes"],
            subjects=state.get("num_subjects", 0),
            max_bytes=_limit(config, "max_bytes"),
            max_messages=_limit(config, "max_msgs"),
            max_per_subject=_limit(config, "max_msgs_per_subject"),
            max_age=_limit(config, "max_age") / NANO,
            replicas=config.get("num_replicas", 1),
            leader=leader,
            peers=peers,
            last_error=_danger(leader, peers),
            differences=_differences(spec, config),
        )

    def _purpose(self, name: str, spec: StreamSpec | None) -> str:
        if (service := self._subjects.service_of(name)) is not None:
            return f"messages to the service {service}"
        if (service := self._subjects.service_of_topics(name)) is not None:
            return f"topics of the service {service}"
        if (service := self._subjects.service_of_casts(name)) is not None:
            return f"says that {service} has ephemeral topics"
        family = spec.family if spec is not None else ""
        return PURPOSES.get(family, "messages to services")

    # -- queues --------------------------------------------------------------------------

    async def queues(self) -> list[Queue]:
        """See `Operations.queues`."""
        services = self._broker.services
        await services.refresh()
        shared = self._subjects.stream("send")
        names = set(services.queue_names)
        if shared in await services.streams():
            names.update(await self._served(shared))
        return await asyncio.gather(*(self._queue(name, shared) for name in sorted(names)))

    async def _served(self, shared: str) -> list[str]:
        """Return the services that have workers' consumers on the stream that all share."""
        answer = await self._api(f"CONSUMER.NAMES.{shared}")
        found = map(self._subjects.service_of_consumer, answer.get("consumers") or [])
        return [service for service in found if service is not None]

    async def _queue(self, service: str, shared: str) -> Queue:
        own = self._subjects.queue(service)
        info = await self._broker.streams.own_info(own)
        config, state = (info["config"], info["state"]) if info is not None else ({}, {})
        consumer, waiting, failed, dead = await asyncio.gather(
            self._consumer(own if info is not None else shared, service),
            self._waiting(service, state, shared),
            self._place(self._subjects.bucket("tries"), self._subjects.tries_key(service, ">")),
            self._place(self._subjects.stream("dead"), self._subjects.all_of("dead", service)),
        )
        return Queue(
            service,
            waiting=waiting.rest if waiting else 0,
            in_flight=consumer.get("num_ack_pending", 0),
            oldest=waiting.time if waiting else None,
            failed=failed.rest if failed else 0,
            dead=dead.rest if dead else 0,
            bytes=state.get("bytes", 0),
            max_bytes=_limit(config, "max_bytes"),
            max_messages=_limit(config, "max_msgs"),
            max_per_user=_limit(config, "max_msgs_per_subject"),
            pulls=consumer.get("num_waiting", 0),
            paused=bool(consumer.get("paused")),
        )

    async def _waiting(self, service: str, state: Mapping[str, Any], shared: str) -> Place | None:
        """Return the oldest message to a service; None if there is none.

        Args:
            service: The service.
            state: Of its own stream, which says so; {} if it shares one.
            shared: The name of that one.
        """
        if not state:
            return await self._place(shared, self._subjects.all_of("send", service))
        if not state["messages"]:
            return None
        time = dt.datetime.fromisoformat(state["first_ts"])
        return Place(state["first_seq"], state["messages"], time)

    async def _consumer(self, stream: str, service: str) -> dict[str, Any]:
        """Return CONSUMER.INFO of the service's consumer; {} if no worker has made it yet."""
        name = f"CONSUMER.INFO.{stream}.{self._subjects.consumer(service)}"
        try:
            return await self._api(name)
        except ApiError as exc:
            if exc.code == 404:
                return {}
            raise

    async def _place(self, stream: str, subject: str) -> Place | None:
        """Return the oldest message of *subject*; None if there is none, nor a stream for it."""
        try:
            return await look(self._broker.jetstream, stream, subject)
        except NobodyAnswers:
            return None


def _limit(config: Mapping[str, Any], key: str) -> int:
    return max(config.get(key) or 0, 0)


def _cluster(info: Mapping[str, Any]) -> tuple[str, tuple[Peer, ...]]:
    """Return the name of a stream's leader, and the other servers that hold it."""
    cluster = info.get("cluster") or {}
    peers = tuple(
        Peer(peer["name"], peer["current"], peer.get("lag", 0), _is_away(peer))
        for peer in cluster.get("replicas") or ()
    )
    return cluster.get("leader", ""), peers


def _is_away(peer: Mapping[str, Any]) -> bool:
    """Say whether the leader does not hear from *peer*.

    The server itself says so of one that has ended in order, or been removed; of one that was
    killed it did not within two minutes (tried with 2.15), but does not call it current, either.
    """
    silent = peer.get("active", 0) / NANO
    return bool(peer.get("offline")) or (not peer["current"] and silent > SILENCE)


def _danger(leader: str, peers: tuple[Peer, ...]) -> str:
    offline = [peer.name for peer in peers if peer.offline]
    if peers and not leader:
        return "it has no leader, so nothing can be stored"
    if offline:
        return f"the leader does not hear from {', '.join(offline)}"
    return ""


def _differences(spec: StreamSpec | None, config: dict[str, Any]) -> tuple[str, ...]:
    if spec is None:
        return ()
    different = (key for key in spec.differences(config) if key != "metadata")
    return tuple(spec.describe(key, config) for key in different)
