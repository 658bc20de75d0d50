"""Channels' own tests of layers, and of consumers on one, against our layer.

No distribution of Channels holds its tests, so they run where ``CHANNELS_SOURCE`` names a
checkout of its repository. What they ask is asked of ours in ``tests/integration/test_layer.py``
and ``tests/integration/test_layer_processes.py`` as well, which always run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.peers.swap import Target, load

SOURCE = os.environ.get("CHANNELS_SOURCE", "")
if not SOURCE:
    pytest.skip("CHANNELS_SOURCE names no checkout of Channels", allow_module_level=True)

BY_NAME = {r"channels\.layers\.InMemoryChannelLayer": "tests.peers.swap.SwappedLayer"}
"""What a test has Django import."""
IMPORTED = {
    r"^from channels\.layers import InMemoryChannelLayer$": (
        "from tests.peers.swap import SwappedLayer as InMemoryChannelLayer"
    ),
    r"^ *assert .*channel_layer\.channels.*$": "",  # an internal table
}
FILES = {
    "tests/test_inmemorychannel.py": (
        IMPORTED,
        {"test_race_empty": "deletes a channel from an internal table"},
    ),
    "tests/test_layers.py": (
        {
            **BY_NAME,
            r"^    InMemoryChannelLayer,$": "",
            r"^import unittest$": (
                "import unittest\nfrom tests.peers.swap import SwappedLayer as InMemoryChannelLayer"
            ),
            r"tests\.test_layers\.": f"{__name__}.",
        },
        {},
    ),
    "tests/test_generic_websocket.py": (BY_NAME, {}),
}


@pytest.fixture(autouse=True)
def _layers(settings: Any, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Target, "prefix", prefix)  # in memory, each layer is a world of its own
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "tests.peers.swap.SwappedLayer"}}


for path, (changes, not_applicable) in FILES.items():
    found = load(Path(SOURCE), path, not_applicable, changes)
    clashes = {name for name in found if name.startswith("test_")} & globals().keys()
    globals().update({name: value for name, value in found.items() if name not in clashes})
    globals().update({f"{name}_{Path(path).stem}": found[name] for name in clashes})
