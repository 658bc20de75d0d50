"""What `wsgateway.topic` accepts, and what it declares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import wsgateway
from wsgateway import declared
from wsgateway.declared import Declared, declared_services
from wsgateway.exceptions import NameRefused
from wsgateway.protocol.subjects import Topic
from wsgateway.services import RetryPolicy
from wsgateway.services.registry import get_service, service
from wsgateway.services.runner import services_to_run


@pytest.fixture(autouse=True)
def nothing_declared(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    declared.discover()
    settings.WSGATEWAY_SERVICES = None
    monkeypatch.setattr(declared, "registered", {})
    monkeypatch.setattr(declared, "topics", {})


def allow(identity: Any, name: str) -> str:
    return "read"


def test_function_declares_durable_topics() -> None:
    assert wsgateway.topic("room")(allow) is allow
    room = declared.topics["room"]
    assert (room.allow, room.handler, room.durable, room.direct) == (allow, None, True, False)
    assert declared_services() == Declared(topics=frozenset({"room"}))


def test_class_has_its_handler() -> None:
    @wsgateway.topic("room")
    class Room:
        def allow(self, identity: Any, name: str) -> str:
            return name

        def handle(self, message: Any) -> str:
            return f"handled {message}"

    room = declared.topics["room"]
    assert room.allow(None, "42") == "42"  # type: ignore[arg-type]
    assert room.handler is not None
    assert room.handler("m") == "handled m"


def test_ephemeral_topics_have_no_stream(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["orders"]
    wsgateway.topic("cursors", durable=False)(allow)
    assert declared_services() == Declared(frozenset({"orders"}), casts=frozenset({"cursors"}))


def test_open_mode_declares_topics_too(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["*"]
    wsgateway.topic("room")(allow)
    assert declared_services() == Declared(is_open=True, topics=frozenset({"room"}))


def without_arguments() -> None:
    """Cannot be asked anything."""


def generates(identity: Any, name: str) -> Any:
    yield "read"


class Plain:
    """Has no allow()."""


class Text:
    allow = "read"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (7, "7 is not a function"),
        (without_arguments, "without_arguments must take two arguments, identity and name"),
        (generates, "generates has a yield"),
        (Plain, r"Plain needs a method allow\(self, identity, name\)"),
        (Text, "'read' is not a function"),
    ],
)
def test_what_cannot_decide_is_refused(wrong: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        wsgateway.topic("room")(wrong)
    assert declared.topics == {}


@pytest.mark.parametrize(("decorator", "name"), [(wsgateway.topic, "room"), (service, "orders")])
def test_decorator_without_a_name_says_how_to_write_it(decorator: Any, name: str) -> None:
    """It said: name <function …> is empty or not text."""
    with pytest.raises(TypeError, match=rf'write @\w+\("{name}"\) above <function without_arg'):
        decorator(without_arguments)


def test_service_of_topics_has_no_dot() -> None:
    """Clients name topics <service>.<name>, so nobody could ever subscribe to one of room.42."""
    with pytest.raises(NameRefused, match=r"@topic\('room'\).* called with '42' as the name"):
        wsgateway.topic("room.42")
    assert declared.topics == {}


def test_service_has_users_or_topics() -> None:
    def handle(message: Any) -> None:
        """Do nothing."""

    wsgateway.topic("room")(allow)
    with pytest.raises(ValueError, match="'room' is a service of topics"):
        service("room")(handle)
    service("orders")(handle)
    with pytest.raises(ValueError, match="'orders' is a service of users"):
        wsgateway.topic("orders")(allow)
    with pytest.raises(ValueError, match=r"'room' are declared already: .*\.allow"):
        wsgateway.topic("room")(lambda identity, name: None)


def test_options_that_contradict_each_other_are_refused() -> None:
    class Room:
        def allow(self, identity: Any, name: str) -> None:
            """Allow nothing."""

        def handle(self, message: Any) -> None:
            """Do nothing."""

    with pytest.raises(ValueError, match=r"handle\(\) is never called"):
        wsgateway.topic("room", direct=True)(Room)
    with pytest.raises(NameRefused):
        wsgateway.topic("x" * 300)


class Handled:
    def allow(self, identity: Any, name: str) -> str:
        return "write"

    def handle(self, message: Any) -> None: ...


def test_handlers_options_are_those_of_a_service() -> None:
    policy = RetryPolicy(attempts=2)
    wsgateway.topic("room", retry=policy, concurrency=3, timeout=1.5)(Handled)
    room = get_service("room")
    assert (room.name, room.has_topics, room.is_async) == ("room", True, False)
    assert (room.policies, room.concurrency, room.timeout) == ({Exception: policy}, 3, 1.5)
    assert declared_services().queues == {"room"}
    with pytest.raises(ValueError, match="have no handler for timeout"):
        wsgateway.topic("hall", timeout=3)(allow)
    with pytest.raises(ValueError, match="so nothing waits in a queue"):
        wsgateway.topic("hall", direct=True, queue=True)(allow)


def test_queue_is_for_handlers_elsewhere() -> None:
    wsgateway.topic("room", queue=True)(allow)
    wsgateway.topic("wall", direct=True)(allow)
    wsgateway.topic("board")(allow)
    assert declared_services().queues == {"room"}
    writable = {name for name, each in declared.topics.items() if each.is_writable}
    assert writable == {"room", "wall"}
    with pytest.raises(LookupError, match="topics of 'board' have no handler"):
        get_service("board")


def test_workers_run_what_topics_handle_whatever_the_setting_lists(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["orders"]
    service("orders")(lambda message: None)
    wsgateway.topic("room")(Handled)
    wsgateway.topic("wall", direct=True)(allow)
    assert [each.name for each in services_to_run([])] == ["orders", "room"]
    assert [each.name for each in services_to_run(["room"])] == ["room"]


async def test_json_handler_chooses_the_method_but_never_allow() -> None:
    """A client could have called an asynchronous allow() with {"type": "allow"}."""

    @wsgateway.topic("room")
    class Room(wsgateway.JsonHandler):
        async def allow(self, identity: Any, name: str) -> str:
            return "write"

        async def say(self, message: Any, data: Any) -> None:
            seen.append((self, data["text"]))

    seen: list[Any] = []
    handler = get_service("room").handler

    def message(**data: Any) -> Any:
        return SimpleNamespace(json=lambda: data, topic=Topic("room", "42"))

    for text in ("a", "b"):
        await handler(message(type="say", text=text))
    assert [text for _, text in seen] == ["a", "b"]
    assert seen[0][0] is not seen[1][0]
    with pytest.raises(wsgateway.Reject, match="unknown type 'allow'"):
        await handler(message(type="allow"))
