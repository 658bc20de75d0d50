"""Kafka as a bus, with aiokafka."""

from __future__ import annotations

from wsgateway.bridges.kafka.bus import KafkaBus

__all__ = ["KafkaBus"]
