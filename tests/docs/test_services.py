"""The code of the pages about services and sending, run as it stands there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from channels.layers import get_channel_layer
from django.contrib.auth import get_user_model
from django.db import connection, models

from tests.pages import DocumentPage
from wsgateway import declared
from wsgateway.outbox.models import OutboxMessage
from wsgateway.testing import adeliver, assert_not_sent, assert_sent, deliver, sent

pytest_plugins = ["wsgateway.testing.plugin"]

SERVICES = DocumentPage("how-to/services.md")
SENDING = DocumentPage("how-to/send-messages.md")
OUTBOX = DocumentPage("how-to/outbox.md")
LLM = DocumentPage("how-to/stream-llm-tokens.md")


def run(page: DocumentPage, part: str, module: str = "page") -> dict[str, Any]:
    """Return the names that a block of the page defines."""
    names: dict[str, Any] = {"__name__": module}
    exec(page.code(part), names)
    return names


class Order:
    """What `ship` and `pay` get."""

    pk = 7
    state = ""
    user = SimpleNamespace(get_username=lambda: "ann")

    def save(self) -> None:
        """Fail if the state is not worth saving."""
        assert self.state == "paid"


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch, settings: Any, wsgateway_memory: Any) -> None:
    declared.discover()
    monkeypatch.setattr(declared, "registered", {})
    settings.WSGATEWAY_SERVICES = ["*"]


def test_handler_accepts_rejects_and_answers() -> None:
    run(SERVICES, '@service("orders")')
    done = deliver("orders", "ann", json={"count": 3}, request=True)
    assert (done.outcome, done.replies[0].json()) == ("done", {"accepted": 3})
    assert deliver("orders", "ann", json={"count": 0}).outcome == "rejected"
    assert deliver("orders", "ann", text="no JSON").outcome == "rejected"


@pytest.mark.django_db(transaction=True)
def test_handler_knows_the_sender() -> None:
    run(SERVICES, '@service("profile")')
    get_user_model().objects.create(username="ann", email="ann@example.com")
    done = deliver("profile", "ann", text="?")
    assert done.replies[0].json() == {"email": "ann@example.com"}


async def test_type_names_the_method() -> None:
    run(SERVICES, '@service("cart")')
    for kind, word in (("item.add", "added"), ("item.remove", "removed")):
        done = await adeliver("cart", "ann", json={"type": kind, "item": "tea"})
        assert done.replies[0].json() == {word: "tea"}
    assert (await adeliver("cart", "ann", json={"type": "pay"})).outcome == "rejected"


def test_topics_have_handlers_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "topics", {})
    run(SERVICES, '@topic("room")')
    assert deliver("orders", "ann", topic="room.42", json={"text": "hi"}).outcome == "done"
    assert_sent(topic="room.42", json={"by": "ann", "text": "hi"}, count=1)
    refused = deliver("orders", "ann", topic="room.42", json={"text": "x" * 501})
    assert (refused.outcome, refused.replies[0].data) == ("rejected", "the text is too long")
    run(SERVICES, "direct=True")
    assert deliver("orders", "ann", topic="wall.1", text="hi").outcome == "done"
    assert assert_sent(topic="wall.1", text="hi").sender == ("orders", "ann")


def test_retries_depend_on_the_exception() -> None:
    names = run(SERVICES, '"payments"')
    for error, outcome in (
        (ConnectionError(), "retried"),
        (names["BankIsClosed"](), "retried"),
        (ValueError(), "dead-lettered"),
    ):

        def charge(order: object, error: Exception = error) -> None:
            raise error

        names["charge"] = charge
        found = deliver("payments", "ann", json={})
        assert found.outcome == outcome
        if isinstance(error, names["BankIsClosed"]):
            assert found.after == 3600


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, transactional_db: None) -> Iterator[type[models.Model]]:
    """The page's model, with its table."""
    source = SERVICES.code("class Handled").replace(
        "    message_id", "    class Meta:\n        app_label = 'shop'\n\n    message_id"
    )
    module = ModuleType("shop.models")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.models", module)
    with connection.schema_editor() as editor:
        editor.create_model(module.Handled)
    yield module.Handled
    with connection.schema_editor() as editor:
        editor.delete_model(module.Handled)


def test_repeated_message_does_its_work_once(shop: Any) -> None:
    take = run(SERVICES, '@service("stock")')["take"]
    for _ in range(2):
        take(SimpleNamespace(message_id="7", id="7"))
    assert shop.objects.count() == 1


def test_send_and_send_again() -> None:
    run(SENDING, "def ship")["ship"](Order())
    assert_sent("orders", "ann", json={"order": 7, "state": "shipped"})
    remind = run(SENDING, "def remind")["remind"]
    assert [remind("ann", 7), remind("ann", 7)] == [False, True]
    assert_sent("invoices", "ann", text="Invoice 7 is due.", count=1)


async def test_send_from_a_consumer() -> None:
    await run(SENDING, "async def notify")["notify"]("ann", "hello")
    assert_sent("orders", "ann", text="hello")
    assert get_channel_layer() is not None


@pytest.mark.django_db(transaction=True)
def test_send_after_the_commit() -> None:
    pay = run(SENDING, "send_on_commit")["pay"]
    pay(Order())
    assert_sent("orders", "ann", json={"order": 7, "state": "paid"})


@pytest.mark.django_db(transaction=True)
def test_send_to_many() -> None:
    for name in ("ann", "bob"):
        get_user_model().objects.create(username=name)
    assert run(SENDING, "def announce")["announce"]("hello") == []
    assert [message.inbox.user for message in sent("news")] == ["ann", "bob"]


async def test_second_try_of_an_answer_is_told_from_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model answers differently the second time, so parts of both must not be mixed."""
    model = ModuleType("assistant.llm")
    exec(LLM.code("def stream_tokens").replace("201", "21"), vars(model))
    monkeypatch.setitem(sys.modules, "assistant", ModuleType("assistant"))
    monkeypatch.setitem(sys.modules, "assistant.llm", model)
    run(LLM, '@service("assistant"')
    for attempt in (1, 2):
        done = await adeliver("assistant", "ann", json={"prompt": "t"}, attempt=attempt)
        assert done.outcome == "done"
        parts = [part.json() for part in done.replies]
        assert {part["run"] for part in parts} == {attempt}
        assert parts[-1]["state"] == "done"
        text = "".join(part["text"] for part in parts)
        assert text == "".join(f"t-{number} " for number in range(1, 21))


@pytest.mark.django_db(transaction=True)
def test_outbox_writes_a_row_in_the_transaction() -> None:
    names = run(OUTBOX, "def pay")
    names["pay"](Order())
    assert OutboxMessage.objects.get().user == "ann"
    order = Order()
    order.pk = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        names["pay"](order)
    assert OutboxMessage.objects.count() == 1
    assert_not_sent()
