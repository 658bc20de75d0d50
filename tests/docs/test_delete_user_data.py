"""docs/how-to/delete-user-data.md: its code, run."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db.models.signals import post_delete

from tests.support import ROOT
from wsgateway import send, user_data

PAGE = (ROOT / "docs/how-to/delete-user-data.md").read_text()
LOOK, RECEIVER, CONNECT = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(autouse=True)
def in_memory(settings: Any) -> None:
    settings.PUBSUB_BROKER = "memory"
    settings.WSGATEWAY_SERVICES = ["orders"]


@pytest.mark.django_db
def test_find_and_delete(capsys: pytest.CaptureFixture[str]) -> None:
    send("orders", "ann", text="hello")
    exec(compile(LOOK, "the page", "exec"), {})
    assert capsys.readouterr().out == "1 1\n"
    assert user_data.find("ann").total == 0


@pytest.mark.django_db(transaction=True)
def test_receiver_deletes_the_data_with_the_user() -> None:
    names: dict[str, Any] = {}
    exec(compile(RECEIVER + CONNECT, "the page", "exec"), names)
    try:
        user = get_user_model().objects.create_user("ann")
        send("orders", "ann", text="hello")
        send("orders", "bob", text="hello")
        user.delete()
        assert user_data.find("ann").total == 0
        assert user_data.find("bob").total == 1
    finally:
        post_delete.disconnect(names["forget"], sender=get_user_model())
