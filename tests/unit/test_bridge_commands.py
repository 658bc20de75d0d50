"""``setup_bridges`` and ``runbridge``: what they print, and with which codes they end."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from tests.bridges.fake_bus import FakeBus
from wsgateway import declared
from wsgateway.bridges.config import Bridge
from wsgateway.bridges.steps import Steps
from wsgateway.exceptions import BusMisconfigured, BusUnavailable
from wsgateway.management.commands import setup_bridges
from wsgateway.management.exits import Exit


class Bus(FakeBus):
    """A bus that can be set up, or not."""

    async def set_up(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return ["created topic ws.recv"]


@pytest.fixture
def buses(settings: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Bus]:
    """The buses of three bridges, by name."""
    made = {name: Bus() for name in "abc"}

    def make(bridge: Bridge) -> Bus:
        return made[bridge.name]

    monkeypatch.setattr(setup_bridges, "make_bus", make)
    declared.discover()
    monkeypatch.setattr(declared, "registered", {})
    monkeypatch.setattr(declared, "topics", {})
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_BRIDGES = {
        name: {"url": f"kafka://{name}.example", "services": [f"orders-{name}"]} for name in made
    }
    return made


def failed(*arguments: str, **options: Any) -> tuple[str, CommandError]:
    out = StringIO()
    with pytest.raises(CommandError) as error:
        call_command(*arguments, stdout=out, **options)
    return out.getvalue(), error.value


def test_bridge_that_fails_keeps_no_other_from_being_set_up(buses: dict[str, Bus]) -> None:
    """Nothing was printed of those before it, and those behind it were not set up."""
    buses["b"].error = BusMisconfigured("no rights")
    printed, error = failed("setup_bridges")
    assert printed.splitlines() == [
        "a: created topic ws.recv",
        "b: failed: no rights",
        "c: created topic ws.recv",
    ]
    assert (str(error), error.returncode) == ("not set up: b: no rights", Exit.FAILED)
    printed, error = failed("setup_bridges", as_json=True)
    assert [(line["bridge"], line["failed"]) for line in json.loads(printed)] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]


def test_what_a_bridge_got_is_shown_beside_what_it_did_not(buses: dict[str, Bus]) -> None:
    steps = Steps()
    steps.lines.append("created topic ws.recv")
    for name in ("topic", "dead"):
        with steps.step():
            raise BusMisconfigured(f"no right to create ws.{name}")
    with pytest.raises(BusMisconfigured) as error:
        steps.result()
    buses["b"].error = error.value
    printed, failure = failed("setup_bridges", "b", as_json=True)
    assert [(line["result"], line["failed"]) for line in json.loads(printed)] == [
        ("created topic ws.recv", False),
        ("failed: no right to create ws.topic", True),
        ("failed: no right to create ws.dead", True),
    ]
    text = "not set up: b: no right to create ws.topic; no right to create ws.dead"
    assert str(failure) == text


def test_another_try_is_advised_if_it_may_help_every_bridge(buses: dict[str, Bus]) -> None:
    buses["a"].error = buses["c"].error = BusUnavailable("away")
    _, error = failed("setup_bridges")
    assert str(error) == "not set up: a: away; c: away"
    assert error.returncode == Exit.UNAVAILABLE
    buses["c"].error = BusMisconfigured("no rights")
    assert failed("setup_bridges")[1].returncode == Exit.FAILED


@pytest.mark.parametrize("command", ["runbridge", "setup_bridges"])
def test_code_says_whether_what_is_named_exists(
    buses: dict[str, Bus], settings: Any, command: str
) -> None:
    """A bridge that exists, but cannot run, ended them as one that does not exist."""
    assert failed(command, "x")[1].returncode == Exit.UNKNOWN
    settings.WSGATEWAY_SERVICES = ["demo"]
    assert failed(command, "a")[1].returncode == Exit.UNKNOWN
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_BRIDGES["a"]["services"] = ["größe"]
    _, error = failed(command, "a")
    assert "Kafka cannot have the topic" in str(error)
    assert error.returncode == Exit.FAILED
    settings.WSGATEWAY_BRIDGES = {}
    assert failed(command)[1].returncode == Exit.UNKNOWN
