"""The consumer that all workers of a service share: made once, then used as it is.

Workers with different settings must not change it under each other: one that sends its heartbeats
every 10 seconds would lose its messages to others when a new worker makes the server wait for 5.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from wsgateway.broker.nats.jetstream import ApiError
from wsgateway.broker.nats.specs import NANO
from wsgateway.exceptions import BrokerMisconfigured, BrokerUnavailable, NobodyAnswers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsgateway.broker.nats.broker import NatsBroker

__all__ = [
    "PAUSED",
    "Consumer",
    "ensure_consumer",
    "pause_consumer",
    "resume_consumer",
    "set_up_consumers",
]

EXISTS = 10148
NOT_UNIQUE = 10100
ESSENTIAL = ("ack_policy", "max_deliver", "filter_subject")
"""Without these, messages would be lost or handled side by side."""
ASK_WORKERS = 0.5
"""Seconds in which a server says that nobody listens."""
A_MOMENT = 0.2
"""Seconds until a pause that is taken back ends."""
PAUSED = b"!"
"""Tells workers, where they tell each other whose turn it is, that their service is paused."""
FOR_GOOD = "2200-01-01T00:00:00Z"
"""Until then a consumer is paused; the server counts nanoseconds in 64 bits."""


class Consumer(NamedTuple):
    """A service's consumer.

    Attributes:
        stream: Where it reads.
        created: When that stream was made; names its life.
        ack_wait: Seconds without a sign of life after which it delivers a message again.
    """

    stream: str
    created: str
    ack_wait: float


def _wanted(broker: NatsBroker, service: str, ack_wait: float) -> dict[str, Any]:
    name = broker.subjects.consumer(service)
    return {
        "durable_name": name,
        "name": name,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait * NANO),
        "max_deliver": -1,  # the worker sets poison messages aside itself
        "max_ack_pending": -1,
        "filter_subject": broker.subjects.all_of("send", service),
    }


async def ensure_consumer(broker: NatsBroker, service: str, ack_wait: float) -> Consumer:
    """Return the consumer of *service*, made with *ack_wait* if there was none.

    Raises:
        BrokerUnavailable: The service has no stream yet, or no answer came.
        BrokerMisconfigured: Workers cannot use the consumer that is there.
    """
    stream = await broker.services.queue(service)
    wanted = _wanted(broker, service, ack_wait)
    try:
        answer = await _create(broker, stream, wanted, "create")
    except ApiError as exc:
        if exc.err_code == NOT_UNIQUE:
            raise BrokerMisconfigured(
                f"another consumer of stream {stream!r} already takes the messages of "
                f"service {service!r} (a service in another language?); a work queue has "
                "one consumer per service: delete it, or serve another service"
            ) from exc
        if exc.err_code != EXISTS:
            raise
        answer = await broker.jetstream.api(f"CONSUMER.INFO.{stream}.{wanted['name']}")
    real = answer["config"]
    for key in ESSENTIAL:
        if real.get(key) != wanted[key]:
            raise BrokerMisconfigured(
                f"consumer {wanted['name']!r} of stream {stream!r} has {key} {real.get(key)!r}, "
                f"workers need {wanted[key]!r}; stop its workers and delete it"
            )
    info = await broker.jetstream.api(f"STREAM.INFO.{stream}")
    return Consumer(stream, info["created"], _ack_wait(real))


def _ack_wait(config: Mapping[str, Any]) -> float:
    """Return the shortest time after which the server delivers again, in seconds."""
    shortest: int = min([config["ack_wait"], *(config.get("backoff") or [])])
    return shortest / NANO


async def _create(
    broker: NatsBroker, stream: str, config: Mapping[str, Any], action: str
) -> dict[str, Any]:
    name = f"CONSUMER.CREATE.{stream}.{config['name']}.{config['filter_subject']}"
    request = {"stream_name": stream, "config": config, "action": action}
    return await broker.jetstream.api(name, request)


async def pause_consumer(broker: NatsBroker, service: str, age: float) -> bool:
    """Have the consumer of *service* deliver nothing until it is resumed. Source: NATS ADR-48.

    Returns:
        False if it was resumed within *age* seconds, and is not paused.
    """
    place = await _place(broker, service)
    info = await broker.jetstream.api(f"CONSUMER.INFO.{place}")
    left = _left_of_pause(info)
    if left <= A_MOMENT:  # it is not paused, or was resumed just now
        if max(0.0, -left) < age:
            return False
        await broker.jetstream.api(f"CONSUMER.PAUSE.{place}", {"pause_until": FOR_GOOD})
    broker.connection.publish(broker.subjects.turn(service), PAUSED)
    return True


def _left_of_pause(info: Mapping[str, Any]) -> float:
    """Return the seconds until a pause ends, by the server's clock; negative since it has ended."""
    until = info["config"].get("pause_until")
    if until is None:
        return -math.inf
    now = dt.datetime.fromisoformat(info["ts"])
    return (dt.datetime.fromisoformat(until) - now).total_seconds()


async def resume_consumer(broker: NatsBroker, service: str) -> bool:
    """Have the consumer of *service* deliver again; return False if it was not paused."""
    place = await _place(broker, service)
    try:
        info = await broker.jetstream.api(f"CONSUMER.INFO.{place}")
    except ApiError as exc:
        if exc.code == 404:  # no worker has made it yet
            return False
        raise
    if not info.get("paused"):
        return False
    # By the server's clock. When a pause is taken back at once, workers get nothing until their
    # open requests expire: only its end has the server look at them (tried with 2.15)
    until = dt.datetime.fromisoformat(info["ts"]) + dt.timedelta(seconds=A_MOMENT)
    await broker.jetstream.api(f"CONSUMER.PAUSE.{place}", {"pause_until": until.isoformat()})
    await asyncio.sleep(A_MOMENT)
    return True


async def _place(broker: NatsBroker, service: str) -> str:
    return f"{await broker.services.queue(service)}.{broker.subjects.consumer(service)}"


async def set_up_consumers(broker: NatsBroker, ack_wait: float) -> list[str]:
    """Give the consumers of all services *ack_wait*; return a line for each that differed.

    It is not lowered while a service has workers, which send their heartbeats too rarely for it.
    """
    lines = []
    for stream in await broker.services.streams():
        for info in await _consumers(broker, stream):
            config = info["config"]
            service = broker.subjects.service_of_consumer(info["name"])
            if service is None or _ack_wait(config) == ack_wait:
                continue
            if ack_wait < _ack_wait(config) and await _has_workers(broker, service):
                lines.append(
                    f"{info['name']}: ack_wait stays {_ack_wait(config):g} s; to lower it to "
                    f"{ack_wait:g} s, stop the workers of {service!r} and run this again"
                )
                continue
            changed = {**config, "ack_wait": int(ack_wait * NANO)}
            changed.pop("backoff", None)
            await _create(broker, stream, changed, "update")
            lines.append(f"{info['name']}: changed ack_wait to {ack_wait:g} s")
    return lines


async def _consumers(broker: NatsBroker, stream: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        answer = await broker.jetstream.api(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
        page = answer.get("consumers") or []
        found += page
        if not page or len(found) >= answer["total"]:
            return found


async def _has_workers(broker: NatsBroker, service: str) -> bool:
    """Say whether a worker listens to where workers tell each other whose turn it is."""
    try:
        await broker.connection.request(broker.subjects.turn(service), b"", timeout=ASK_WORKERS)
    except NobodyAnswers:
        return False
    except BrokerUnavailable:  # they listen, but do not answer
        pass
    return True
