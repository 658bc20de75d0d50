"""docs/how-to/backups.md: its commands, as they are written there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests import LIMITS, SERVICES
from tests.support import ROOT, Gateway, site_env
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("orders", "ann")


def script(heading: str) -> str:
    """Return the shell commands below a heading of the page."""
    text = (ROOT / "docs/how-to/backups.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    [found] = re.findall(r"```sh\n(.*?)```", section, re.S)
    return str(found)


def restore_script(folder: Path) -> str:
    """Return the commands that restore, with the day of the backup in *folder*."""
    [day] = (folder / "backup").iterdir()
    text = script("Restore").replace("2026-11-26", day.name)
    return text.replace("python manage.py", f"{sys.executable} {ROOT}/manage.py")


async def test_backup_and_restore_as_documented(
    nats_command: str,
    nats_server: EmbeddedServer,
    broker: NatsBroker,
    prefix: str,
    tmp_path: Path,
    gateway_factory: Callable[..., Gateway],
) -> None:
    """A restored inbox has what it had, in another epoch, so that no client trusts old offsets.

    NATS before 2.15 restores the creation time as well, and that alone was the epoch: offsets of
    lost messages counted for new ones, which clients then never got.
    """
    env = site_env(
        DEBUG="1",
        WSGATEWAY_SERVICES=",".join(SERVICES),
        WSGATEWAY_PREFIX=prefix,
        NATS_BROKER_URL=nats_server.url,
        NATS_URL=nats_server.url,
        HOME=str(tmp_path),
        PATH=f"{Path(nats_command).parent}{os.pathsep}{os.environ['PATH']}",
        **{name: str(value) for name, value in LIMITS.items()},
    )

    def shell(text: str) -> None:
        own = text.replace("WS_", f"{prefix.upper()}_")
        done = subprocess.run(
            ["sh", "-c", own], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    for text in ("one", "two"):
        await broker.publish(ANN, text.encode())
    await broker.save_cursor(ANN, "default", 2)
    epoch = broker.inboxes.epoch
    shell(script("Back up"))
    [day] = (tmp_path / "backup").iterdir()
    kinds = {path.name.removeprefix(f"{prefix.upper()}_").split("_")[0] for path in day.iterdir()}
    assert kinds == {"RECV", "DEAD", "SEND", "TOPIC"}
    await broker.publish(ANN, b"after the backup")
    await broker.close()
    shell(restore_script(tmp_path))
    restored = broker_from_settings(wsgateway_settings)
    await restored.open()
    try:
        await restored.wait_ready()
        batch = await restored.inboxes.read_after(ANN, 0, limit=10)
        assert [each.payload for each in batch.messages] == [b"one", b"two"]
        assert restored.inboxes.epoch != epoch
        seen = restored.inboxes.epoch
        await restored.set_up()  # keeps the mark
        assert (await restored.inboxes.position()).epoch == seen
        await restored.set_up(restored=True)  # once more, as after a second restore
        assert (await restored.inboxes.position()).epoch not in (epoch, seen)
    finally:
        await restored.close()
    gateway = gateway_factory()
    query = f"?epoch={epoch}&offset=2"
    async with gateway.connect("orders", "ann", query=query, subprotocols=["wsgateway.v1"]) as ws:
        welcome = json.loads(await ws.recv())
        assert (welcome["recovered"], welcome["reason"]) == (False, "epoch")
        assert [json.loads(await ws.recv())["data"] for _ in range(2)] == ["one", "two"]
