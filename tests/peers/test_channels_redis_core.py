"""channels_redis' own test_core.py against our layer."""

from __future__ import annotations

from tests.peers.swap import load, source

NOT_APPLICABLE = {
    "test_default_group_key_format": "asks for the name of a Redis key",
    "test_custom_group_key_format": "asks for the name of a Redis key",
    "test_receive_buffer_respects_capacity": "looks into an internal buffer, which drops the "
    "oldest message; tests/unit/test_layer_mailbox.py has the promise that is kept here",
}

globals().update(load(source("channels-redis==4.3.0"), "tests/test_core.py", NOT_APPLICABLE))
