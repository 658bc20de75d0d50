"""Several embedded servers as one cluster, for tests of failover."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wsgateway.broker.embedded import (
    DEFAULT_MAX_PAYLOAD,
    HOST,
    START_TIMEOUT,
    EmbeddedServer,
    ask,
    free_port,
)
from wsgateway.exceptions import BrokerUnavailable

__all__ = ["Cluster"]

PROBE = "CLUSTER-PROBE"
"""A stream that only `Cluster.wait_whole` makes, and deletes."""
MOST_REPLICAS = 5
"""That NATS allows."""
ANSWER_TIMEOUT = 2.0
"""Seconds for an answer; an election swallows requests."""


class Cluster:
    """Several servers that form one cluster; a context manager.

    Args:
        store: Folder for the servers' folders.
        n: How many.
        sync_interval: See `EmbeddedServer`.
        max_payload: See `EmbeddedServer`.
        advertise: Whether the servers tell clients of each other.
    """

    def __init__(
        self,
        store: Path,
        n: int = 3,
        *,
        sync_interval: str = "always",
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        advertise: bool = True,
    ) -> None:
        ports: set[int] = set()
        while len(ports) < 2 * n:
            ports.add(free_port())
        clients, routes = list(ports)[:n], list(ports)[n:]
        name = f"wsgateway-{secrets.token_hex(4)}"
        self.nodes = [
            EmbeddedServer(
                Path(store) / f"n{index}",
                port=clients[index],
                sync_interval=sync_interval,
                max_payload=max_payload,
                name=f"{name}-n{index}",
                config={
                    "cluster": {
                        "name": name,
                        "listen": f"{HOST}:{routes[index]}",
                        "no_advertise": not advertise,
                        "routes": [f"nats://{HOST}:{port}" for port in routes],
                    }
                },
            )
            for index in range(n)
        ]

    @property
    def urls(self) -> list[str]:
        """Where clients connect, one per node."""
        return [node.url for node in self.nodes]

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Start every node and wait until they can replicate a stream."""
        try:
            for node in self.nodes:
                node.spawn()
            self.wait_whole(timeout)
        except BaseException:
            for node in self.nodes:
                node.kill()
            raise
        return self

    def wait_whole(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until every node answers, and a stream with a replica on each is current.

        A node answers before the others count it as online: that takes about a second more.

        Raises:
            BrokerUnavailable: It took longer than *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            node.wait_ready(max(0.1, deadline - time.monotonic()))
        replicas = min(len(self.nodes), MOST_REPLICAS)
        config = {"name": PROBE, "storage": "memory", "num_replicas": replicas}
        answer: dict[str, Any] = {}
        while not _is_current(answer, replicas):
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"the cluster was not whole within {timeout:g} s: {answer or 'no answer'}"
                )
            time.sleep(0.05)
            answer = self._ask(f"STREAM.CREATE.{PROBE}", config)
            if "error" not in answer:
                answer = self._ask(f"STREAM.INFO.{PROBE}")
        while "error" not in self._ask(f"STREAM.INFO.{PROBE}"):
            self._ask(f"STREAM.DELETE.{PROBE}")

    def _ask(self, request: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
        return ask(self.nodes[0].port, request, fields, timeout=ANSWER_TIMEOUT)[1]

    def stop(self) -> None:
        """End every node that runs."""
        for node in self.nodes:
            node.stop()

    def __iter__(self) -> Iterator[EmbeddedServer]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> EmbeddedServer:
        """Return the node that calls itself *name*, as stream information does."""
        return next(node for node in self.nodes if node.name == name)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _is_current(info: dict[str, Any], replicas: int) -> bool:
    """Say whether the stream has a leader, and followers that have caught up with it."""
    cluster = info.get("cluster") or {}
    current = [peer for peer in cluster.get("replicas") or () if peer.get("current")]
    return bool(cluster.get("leader")) and len(current) == replicas - 1
