"""The page that Prometheus reads: this process, the others behind its port, and the cluster."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wsgateway.metrics.catalog import EXPORT
from wsgateway.metrics.cluster import ask_cluster
from wsgateway.metrics.collector import register
from wsgateway.metrics.families import Families, decode, encode, merge
from wsgateway.metrics.members import Member

__all__ = ["Exporter", "Page"]


class Page(NamedTuple):
    """What Prometheus gets."""

    content_type: str
    body: bytes


class Exporter:
    """Exports the metrics of all processes that share a port. Use it from any thread.

    Args:
        port: Where they are asked, for example ``127.0.0.1:9100``.
        asks_broker: Whether queues and streams are part of the page. A process that only stores
            messages may not be allowed to ask.
    """

    def __init__(self, port: str, *, asks_broker: bool = True) -> None:
        self._asks_broker = asks_broker
        self._member = Member(port, self._answer)

    def open(self) -> None:
        """Let the other processes ask this one."""
        register()
        self._member.open()

    def close(self) -> None:
        """Answer no more. Idempotent."""
        self._member.close()

    def page(self, accept: str) -> Page:
        """Return all metrics. Blocks for some seconds at most; not in an event loop.

        Args:
            accept: The request's header of this name.
        """
        found = CollectorRegistry()
        found.register(_Found(self._collect()))
        encoder, content_type = choose_encoder(accept)
        return Page(content_type, encoder(found))

    def _answer(self) -> bytes:
        return encode(REGISTRY.collect())

    def _collect(self) -> list[Metric]:
        others = self._member.ask_others()
        answers: dict[str, Iterable[Metric]] = {str(os.getpid()): REGISTRY.collect()}
        silent = others.silent
        for process, answer in others.by_process.items():
            try:
                answers[process] = decode(answer)
            except ValueError:  # of another version, or it ended while it answered
                silent += 1
        export = Families(EXPORT)
        export.add("wsgateway_metrics_processes", len(answers), "answered")
        export.add("wsgateway_metrics_processes", silent, "silent")
        return [*merge(answers), *ask_cluster(broker=self._asks_broker), *export]


class _Found(Collector):
    """What was collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._families
