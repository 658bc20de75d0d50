"""channels_redis' own test_serializers.py against our layer."""

from __future__ import annotations

from tests.peers.swap import load, source

NOT_APPLICABLE: dict[str, str] = {}

globals().update(load(source("channels-redis==4.3.0"), "tests/test_serializers.py", NOT_APPLICABLE))
