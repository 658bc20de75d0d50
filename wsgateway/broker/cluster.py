"""Several embedded servers as one cluster, for tests of failover."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from wsgateway.broker.embedded import (
    DEFAULT_MAX_PAYLOAD,
    HOST,
    START_TIMEOUT,
    EmbeddedServer,
    free_port,
)

__all__ = ["Cluster"]


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
        """Start every node and wait until each has found JetStream's leader."""
        try:
            for node in self.nodes:
                node.spawn()
            for node in self.nodes:
                node.wait_ready(timeout)
        except BaseException:
            for node in self.nodes:
                node.kill()
            raise
        return self

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
