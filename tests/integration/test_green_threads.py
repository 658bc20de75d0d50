"""gevent and eventlet, which replace Python's threads; each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support import ROOT, site_env
from tests.troubleshooting import Symptom

GEVENT = "from gevent import monkey; monkey.patch_all()"
EVENTLET_STAND_IN = """
from types import ModuleType
sys.modules["eventlet.patcher"] = ModuleType("eventlet.patcher")
sys.modules["eventlet.patcher"].is_monkey_patched = lambda name: name == "thread"
"""
PROGRAM = """
import json, os, sys
{patch}
import django
django.setup()
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from wsgateway import send

async def nothing():
    return "works"

told = {{}}

def note(name, function, *args):
    try:
        told[name] = function(*args)
    except Exception as exc:
        told[name] = f"{{type(exc).__name__}}: {{exc}}"

layer = get_channel_layer()
note("before", async_to_sync(nothing))
note("layer", async_to_sync(layer.send), "work", {{"type": "x", "n": 1}})
note("after layer", async_to_sync(nothing))
note("sync", layer.send_sync, "work", {{"type": "x", "n": 2}})
note("send", lambda: send("counted", "ann", text="hi").offset)
note("after send", async_to_sync(nothing))
{more}
note("received", lambda: [async_to_sync(layer.receive)("work")["n"] for _ in range({count})])
print(json.dumps(told))
"""
TOGETHER = """
import gevent

def work(number):
    for _ in range(10):
        send("counted", "ann", text="hi")
        layer.group_send_sync("group", {"type": "x"})
    layer.send_sync("work", {"type": "x", "n": number})
    return number

def tick():
    while True:
        gevent.sleep(0)
        ticks.append(1)

ticks = []
ticking = gevent.spawn(tick)
jobs = [gevent.spawn(work, number) for number in range(3, 13)]
gevent.joinall(jobs, timeout=30, raise_error=True)
ticking.kill()
told["together"] = sorted(job.value for job in jobs)
told["others ran"] = bool(ticks)
"""


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test without *package*."""
    is_missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(is_missing, reason=f"{package} is not installed")


def run(nats_settings: Any, patch: str, more: str = "", count: int = 2) -> dict[str, Any]:
    env = site_env(
        DEBUG="1",
        NATS_BROKER_URL=nats_settings.NATS_BROKER_URL,
        WSGATEWAY_PREFIX=nats_settings.WSGATEWAY_PREFIX,
        DJANGO_SETTINGS_MODULE="tests.service_app.settings",
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(patch=patch, more=more, count=count)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@needs("gevent")
def test_gevent(nats_settings: Any) -> None:
    """One `send` ran a loop for ever in the only thread; every later async_to_sync failed."""
    told = run(nats_settings, GEVENT, TOGETHER, count=12)
    assert told == {
        "before": "works",
        "layer": None,
        "after layer": "works",
        "sync": None,
        "send": 1,
        "after send": "works",
        "together": list(range(3, 13)),
        "others ran": True,
        "received": told["received"],
    }
    assert sorted(told["received"]) == list(range(1, 13))


AT_ONCE = """
import gevent
jobs = [gevent.spawn(note, n, async_to_sync(layer.send), "work", {"type": "x"}) for n in "ab"]
gevent.joinall(jobs, timeout=30)
"""


@needs("gevent")
@pytest.mark.troubleshooting("asyncio.run() cannot be called from a running event loop")
def test_async_to_sync_in_two_greenlets(symptom: Symptom, nats_settings: Any) -> None:
    told = run(nats_settings, GEVENT, AT_ONCE, count=3)
    assert told["a"] is None
    symptom.must_show_in(told["b"])
    assert told["after send"] == "works"


@pytest.mark.troubleshooting("eventlet has replaced Python's threads")
@pytest.mark.parametrize("kind", [pytest.param("eventlet", marks=needs("eventlet")), "stand-in"])
def test_eventlet_is_refused_with_the_reason(
    symptom: Symptom, nats_settings: Any, kind: str
) -> None:
    patch = EVENTLET_STAND_IN
    if kind == "eventlet":
        patch = "import warnings; warnings.simplefilter('ignore')\n"
        patch += "import eventlet; eventlet.monkey_patch()"
    told = run(nats_settings, patch)
    for name in ("layer", "sync", "send", "received"):
        symptom.must_show_in(told[name])
    for name in ("before", "after layer", "after send"):
        assert told[name] == "works"
