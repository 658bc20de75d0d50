"""Synchronous callers: one shared connection per process, before and after a fork."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import psutil
import pytest
from asgiref.sync import async_to_sync

from tests.integration.layers import drain, receive
from tests.support import ROOT, site_env
from wsgateway.layer import NatsChannelLayer

PROGRAM = """
import asyncio, gc, json, logging, os, sys, threading, urllib.request, warnings
import django
warnings.simplefilter("always")
django.setup()
from asgiref.sync import async_to_sync
from wsgateway.broker import runtime
from wsgateway.layer import NatsChannelLayer
url, prefix, what = sys.argv[1:4]
layer = NatsChannelLayer(url, prefix=prefix, capacity=100_000)

async def member(group):
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    return channel

async def count(channel, wanted):
    got = 0
    async with asyncio.timeout(60):
        while got < wanted:
            await layer.receive(channel)
            got += 1
    return got
"""

THREADS = """
send = async_to_sync(layer.group_send)

def work(kind):
    for number in range(2500):
        if kind % 2:
            layer.group_send_sync("group", {"type": "x", "n": number})
        else:
            send("group", {"type": "x", "n": number})

channel = async_to_sync(member)("group")
threads = [threading.Thread(target=work, args=(kind,)) for kind in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(async_to_sync(count)(channel, 10_000), len(runtime.connections()), flush=True)
input()
"""

FORK = """
channel = async_to_sync(member)("group")       # the parent has a connection
layer.group_send_sync("group", {"type": "x"})
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:                               # a worker, as Celery's prefork makes it
        send = async_to_sync(layer.group_send)
        for _ in range(50):
            send("group", {"type": "x"})
            layer.group_send_sync("group", {"type": "x"})
        mine = async_to_sync(member)("children")
        assert mine.split("!")[0] != channel.split("!")[0]
        layer.group_send_sync("children", {"type": "x"})
        async_to_sync(count)(mine, 1)
        sys.exit(0)
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
print(async_to_sync(count)(channel, 301), len(runtime.connections()), flush=True)
input()
"""


def clients(server: Any) -> int:
    """Return how many connections the server has."""
    found = psutil.Process(server.pid).net_connections("tcp")
    return sum(1 for connection in found if connection.status == psutil.CONN_ESTABLISHED)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("program", [THREADS, FORK], ids=["threads", "fork"])
def test_one_connection_and_no_complaint(own_server: Any, prefix: str, program: str) -> None:
    env = site_env(DJANGO_SETTINGS_MODULE="tests.settings")
    before = clients(own_server)
    process = subprocess.Popen(
        [sys.executable, "-W", "always", "-c", PROGRAM + program, own_server.url, prefix, "x"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        assert line[1:] == ["1"], process.stderr.read() if not line and process.stderr else line
        assert int(line[0]) == (10_000 if program is THREADS else 301)
        assert clients(own_server) == before + 1
        _, errors = process.communicate("\n", timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, errors
    for complaint in ("Event loop is closed", "was destroyed", "never awaited", "ResourceWarning"):
        assert complaint not in errors
    assert "Traceback" not in errors, errors


async def test_sync_functions_refuse_to_block_a_loop(prefix: str) -> None:
    layer = NatsChannelLayer("nats://127.0.0.1:1", prefix=prefix)
    with pytest.raises(RuntimeError, match=r"use `await layer\.send\(\.\.\.\)`"):
        layer.send_sync("channel", {"type": "x"})
    with pytest.raises(RuntimeError, match=r"use `await layer\.group_send\(\.\.\.\)`"):
        layer.group_send_sync("group", {"type": "x"})


def test_sync_functions_send(nats_server: Any, prefix: str) -> None:
    layer = NatsChannelLayer(nats_server.url, prefix=prefix)
    layer.send_sync("channel", {"type": "x", "n": 1})
    layer.group_send_sync("service.user", {"type": "x"})

    async def read() -> Any:
        try:
            return await asyncio.wait_for(layer.receive("channel"), 20)
        finally:
            await layer.close()

    assert asyncio.run(read()) == {"type": "x", "n": 1}
    with pytest.raises(AssertionError):
        layer.send_sync("channel", "text")  # type: ignore[arg-type]


def test_one_writers_order_holds_however_it_sends(nats_server: Any, prefix: str) -> None:
    writer = NatsChannelLayer(nats_server.url, prefix=prefix)
    reader = NatsChannelLayer(nats_server.url, prefix=prefix, capacity=1000)

    def write(channel: str) -> None:
        group_send, send = async_to_sync(writer.group_send), async_to_sync(writer.send)
        for number in range(0, 600, 4):
            writer.group_send_sync("group", {"type": "x", "n": number})
            send(channel, {"type": "x", "n": number + 1})
            writer.send_sync(channel, {"type": "x", "n": number + 2})
            group_send("group", {"type": "x", "n": number + 3})

    async def run() -> list[int]:
        try:
            channel = await reader.new_channel()
            await reader.group_add("group", channel)
            await asyncio.to_thread(write, channel)
            return await drain(reader, channel, 600)
        finally:
            await reader.close()

    assert asyncio.run(run()) == list(range(600))


def test_what_was_sent_last_leaves_with_the_process(nats_server: Any, prefix: str) -> None:
    """The call does not wait for the socket; the end of the process does."""
    program = PROGRAM + 'for _ in range(99): layer.group_send_sync("group", {"type": "x"})'
    reader = NatsChannelLayer(nats_server.url, prefix=prefix)

    async def run() -> None:
        try:
            channel = await reader.new_channel()
            await reader.group_add("group", channel)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", program, nats_server.url, prefix, "x"),
                cwd=ROOT,
                env=site_env(DJANGO_SETTINGS_MODULE="tests.settings"),
            )
            assert await process.wait() == 0
            for _ in range(99):
                await receive(reader, channel)
        finally:
            await reader.close()

    asyncio.run(run())
