"""Runs the test suites of other channel layers against ours.

Their source distributions come from the package index through pip when the tests run; nothing
of them is kept in this repository. What they import of their own package is replaced by ours.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from tests.integration.layers import nats_of
from tests.support import ROOT
from wsgateway.layer import NatsChannelLayer, serializers

CACHE = ROOT / ".cache" / "peers"


class Target:
    """Where the swapped-in layers connect to; the fixtures set it."""

    servers: list[str] = []  # noqa: RUF012
    prefix = "peers"
    settled = False
    """Whether a group's message has to be with this process's members when `group_send` returns."""


class SwappedLayer(NatsChannelLayer):
    """Our layer under their name, connected to the test's server."""

    def __init__(self, hosts: Any = None, **options: Any) -> None:
        options.setdefault("prefix", Target.prefix)
        super().__init__(Target.servers, **options)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await super().group_send(group, message)
        if Target.settled:
            node = self.local.connection
            assert node is not None
            await node.bus.confirm()

    # What Channels' tests of consumers look into

    @property
    def channels(self) -> dict[str, Any]:
        return {name.decode(): mailbox for name, mailbox in self.local.mailboxes.items()}

    @property
    def groups(self) -> dict[str, Any]:
        return self.local.groups.by_name

    # What the pub/sub tests look into

    @property
    def _layers(self) -> dict[Any, Any]:
        return self.connections.by_loop

    @property
    def _shards(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(_redis=self)]


async def cut_connection(layer: NatsChannelLayer) -> None:
    """Break the layer's connection, as a network does."""
    node = layer.local.connection
    assert node is not None
    lost = asyncio.Event()
    hook = node.bus.on_lost(lost.set)
    nats_of(node).connection.force_reconnect()
    await lost.wait()
    hook.close()
    await node.bus.ready()


def source(requirement: str) -> Path:
    """Return the unpacked source distribution of *requirement*, downloaded at the first call."""
    folder = CACHE / requirement
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as new:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--no-binary", ":all:", "-d", new]
            subprocess.run([*command, requirement], check=True, timeout=120)
            with tarfile.open(next(Path(new).glob("*.tar.gz"))) as archive:
                archive.extractall(new, filter="data")
            unpacked = next(path for path in Path(new).iterdir() if path.is_dir())
            try:
                unpacked.rename(folder)
            except OSError:  # another of xdist's processes was quicker
                if not folder.exists():
                    raise
    return folder


def _module(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(names)
    return module


@contextmanager
def _swapped() -> Iterator[None]:
    ours = {
        "async_timeout": _module("async_timeout", timeout=asyncio.timeout),
        "channels_redis": _module("channels_redis"),
        "channels_redis.core": _module(
            "channels_redis.core", ChannelFull=ChannelFull, RedisChannelLayer=SwappedLayer
        ),
        "channels_redis.pubsub": _module(
            "channels_redis.pubsub", RedisPubSubChannelLayer=SwappedLayer
        ),
        "channels_redis.serializers": serializers,
        "channels_redis.utils": _module("channels_redis.utils", _close_redis=cut_connection),
    }
    before = {name: sys.modules.get(name) for name in ours}
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _patient(mark: Any) -> Any:
    """Give a test that is handed its deadline ten times as long: this machine is shared."""
    if mark.name != "parametrize" or not mark.args[0].endswith(",timeout"):
        return mark
    names, rows = mark.args
    return pytest.mark.parametrize(names, [(*row[:-1], 10 * row[-1]) for row in rows]).mark


def load(
    folder: Path, path: str, not_applicable: dict[str, str], changes: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return the tests and fixtures of a file, with our layer in place of theirs.

    Args:
        folder: The peer's unpacked source.
        path: The file within.
        not_applicable: Tests to leave out, with the reason.
        changes: Regular expressions for what else to replace in its text, and by what.
    """
    text = (folder / path).read_text()
    for pattern, replacement in (changes or {}).items():
        text, count = re.subn(pattern, replacement, text, flags=re.M)
        assert count, f"{path} in {folder.name} has nothing like {pattern} any more"
    names: dict[str, Any] = {"__name__": f"peers.{Path(path).stem}"}
    with _swapped():
        exec(compile(text, path, "exec"), names)
    unknown = [name for name in not_applicable if name not in names]
    assert not unknown, f"{path} in {folder.name} has no {unknown} any more"
    for name in not_applicable:
        del names[name]
    for name, value in names.items():
        if name.startswith("test_") and hasattr(value, "pytestmark"):
            # What its own layer is expected to fail must pass here
            value.pytestmark = [_patient(mark) for mark in value.pytestmark if mark.name != "xfail"]
    return {name: value for name, value in names.items() if not name.startswith("__")}
