"""The site's settings for a bridge in a process of its own; TEST_BRIDGES is JSON."""

from __future__ import annotations

import json
import os

from tests.settings import *  # noqa: F403

PUBSUB_BROKER = "nats"
NATS_BROKER_URL = os.environ.get("NATS_BROKER_URL", "")
WSGATEWAY_PREFIX = os.environ.get("WSGATEWAY_PREFIX", "")
WSGATEWAY_BRIDGES = json.loads(os.environ.get("TEST_BRIDGES", "{}"))
WSGATEWAY_ACK_WAIT = 3.0
WSGATEWAY_REPLICAS = int(os.environ.get("TEST_REPLICAS", "1"))
