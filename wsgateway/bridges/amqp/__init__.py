"""RabbitMQ as a bus, with aio-pika."""

from __future__ import annotations

from wsgateway.bridges.amqp.bus import AmqpBus

__all__ = ["AmqpBus"]
