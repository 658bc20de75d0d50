"""channels_redis' own test_sentinel.py against our layer: their failover is Redis Sentinel, ours
a cluster of three servers that each keep everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.peers.swap import Target, load, source
from tests.peers.test_channels_redis_core import NOT_APPLICABLE as CORE
from wsgateway.broker import runtime
from wsgateway.broker.cluster import Cluster


@pytest.fixture(autouse=True, scope="module")
def _target(nats_cluster: Cluster) -> Iterator[None]:
    """Overrides the one for a single server."""
    Target.servers = nats_cluster.urls
    yield
    runtime.stop_background()


@pytest.fixture(autouse=True)
def _replicas(settings: Any) -> None:
    settings.WSGATEWAY_REPLICAS = 3


PREFIXED = "counts on 12 random bytes in front, for Redis' sorted sets; see test_serializers.py"
NOT_APPLICABLE = {**CORE, "test_serialize": PREFIXED, "test_deserialize": PREFIXED}

globals().update(load(source("channels-redis==4.3.0"), "tests/test_sentinel.py", NOT_APPLICABLE))
