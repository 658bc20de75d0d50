"""The channel layers that are compared, and the servers they need."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from wsgateway.broker.embedded import EmbeddedServer, free_port

__all__ = ["NAMES", "Servers", "available", "make_layer", "servers"]

NAMES = ["ours", "core", "pubsub", "channels-nats", "memory"]
CAPACITY = 1_000_000
"""Nobody loses messages because a reader is slow: the rates of all layers count deliveries."""


class Servers(NamedTuple):
    """Where the servers listen."""

    nats: str
    redis: str


def available() -> list[str]:
    """Return the layers that are installed, ours first."""
    modules = {
        "core": "channels_redis",
        "pubsub": "channels_redis",
        "channels-nats": "channels_nats",
    }
    return [
        name
        for name in NAMES
        if name not in modules or importlib.util.find_spec(modules[name]) is not None
    ]


def make_layer(name: str, where: Servers) -> Any:
    """Return a new channel layer."""
    if name == "ours":
        from wsgateway.layer import NatsChannelLayer

        return NatsChannelLayer([where.nats], prefix="bench", capacity=CAPACITY)
    if name == "core":
        from channels_redis.core import RedisChannelLayer

        return RedisChannelLayer([where.redis], capacity=CAPACITY)
    if name == "pubsub":
        from channels_redis.pubsub import RedisPubSubChannelLayer

        return RedisPubSubChannelLayer([where.redis], capacity=CAPACITY)
    if name == "channels-nats":
        import channels_nats

        return channels_nats.NatsChannelLayer([where.nats], prefix="peer", capacity=CAPACITY)
    from channels.layers import InMemoryChannelLayer

    return InMemoryChannelLayer(capacity=CAPACITY)


@contextmanager
def servers(sync_interval: str, peers: bool = True) -> Iterator[Servers]:
    """Start a nats-server on a free port of loopback, and a redis-server if *peers* need one."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        redis = stack.enter_context(_redis(folder)) if peers else ""
        data = Path(folder) / "nats"
        nats = stack.enter_context(EmbeddedServer(data, sync_interval=sync_interval))
        yield Servers(nats.url, redis)


@contextmanager
def _redis(folder: str) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("the peers need redis-server; install it (apt-get install redis-server)")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
    command += ["--save", "", "--appendonly", "no"]
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_until_open(port)
        yield f"redis://127.0.0.1:{port}"
    finally:
        redis.terminate()
        redis.wait()


def _wait_until_open(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise SystemExit("redis-server does not listen within 10 s")
        time.sleep(0.02)
