"""channels_redis' own test_pubsub.py against our layer."""

from __future__ import annotations

from tests.peers.swap import load, source

NOT_APPLICABLE = {
    "test_receive_on_non_owned_general_channel": "sends a str, which the specification forbids "
    "and channels_redis.core refuses; tests/integration/test_layer.py does it with a dict",
    "test_loop_instance_channel_layer_reference": "looks into an internal proxy object",
}

globals().update(load(source("channels-redis==4.3.0"), "tests/test_pubsub.py", NOT_APPLICABLE))
