"""Checks for django-health-check 4, if you have installed it. See docs/how-to/deploy.md.

from health_check.views import HealthCheckView

path("health/", HealthCheckView.as_view(checks=["wsgateway.health_checks.Gateway"]))
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from wsgateway.broker import runtime
from wsgateway.broker.operations import Queue as QueueState
from wsgateway.exceptions import WsGatewayError
from wsgateway.health import problems

__all__ = ["Gateway", "Queue"]


@dataclass
class Gateway(HealthCheck):  # type: ignore[misc]  # the package has no types
    """This process can serve sockets: what ``/readyz`` says.

    In another process than a gateway, the broker can be reached and its streams are ready.
    """

    async def run(self) -> None:
        """Raise if it cannot.

        Raises:
            ServiceUnavailable: Which part is not ready; neither addresses nor names.
        """
        found = await problems()
        if found:
            texts = "; ".join(f"{part}: {text}" for part, text in found.items())
            raise ServiceUnavailable(texts)


@dataclass
class Queue(HealthCheck):  # type: ignore[misc]
    """The workers of a service keep up with what clients send.

    Attributes:
        service: The service.
        max_age: Seconds that its oldest message may wait.
        max_level: What part of the messages and bytes that may wait is too much.
    """

    service: str
    max_age: float = 60.0
    max_level: float = 0.8

    async def run(self) -> None:
        """Raise if they do not.

        Raises:
            ServiceWarning: Messages wait for too long, or too many do.
            ServiceUnavailable: It is not known, or clients are refused because the queue is full.
        """
        try:
            queues = await runtime.call(lambda broker: broker.operations.queues())
        except WsGatewayError as exc:
            raise ServiceUnavailable("the broker does not say how long the queue is") from exc
        queue = next((each for each in queues if each.service == self.service), None)
        if queue is None:
            raise ServiceUnavailable("the service does not exist")
        level = _level(queue)
        if level >= 1.0:
            raise ServiceUnavailable(f"the queue is full: {queue.waiting} messages wait")
        if level > self.max_level:
            raise ServiceWarning(f"the queue is {level:.0%} full: {queue.waiting} messages wait")
        age = (datetime.now(UTC) - queue.oldest).total_seconds() if queue.oldest else 0.0
        if age > self.max_age:
            raise ServiceWarning(f"{queue.waiting} messages wait, the oldest for {age:.0f} s")


def _level(queue: QueueState) -> float:
    """Return what part of its limits a queue uses; 0.0 if it has none."""
    pairs = ((queue.waiting, queue.max_messages), (queue.bytes, queue.max_bytes))
    return max((used / limit for used, limit in pairs if limit), default=0.0)
