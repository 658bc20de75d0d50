"""The code of the page about topics, run as it stands there."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group, User
from django.http import Http404
from django.template import Context, Template
from django.test import RequestFactory
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.contract.topic_sessions.client import Client
from tests.pages import DocumentPage
from tests.support import until
from tests.unit.clients import client_of
from tests.unit.fake_gateway import FakeGateway
from wsgateway import declared, send_topic, topics
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.conf import SETTINGS
from wsgateway.gateway.hub import get_hub
from wsgateway.identity import Identity
from wsgateway.protocol.subjects import Inbox, Topic
from wsgateway.protocol.v1 import Resume
from wsgateway.testing import assert_not_sent
from wsgateway.topics import marks
from wsgateway.topics.rights import Rights

pytest_plugins = ["wsgateway.testing.plugin"]

PAGE = DocumentPage("how-to/topics.md")
SENDING = DocumentPage("how-to/send-messages.md")
STAFF = Topic("room", "staff")


def run(part: str, page: DocumentPage = PAGE) -> dict[str, Any]:
    """Return the names that a block of the page defines."""
    names: dict[str, Any] = {"__name__": "ws_services"}
    exec(page.code(part), names)
    return names


@async_to_sync
async def access(user: str, topic: Topic = STAFF, token: str | None = None) -> str | None:
    """Return what a gateway that has just started lets *user* do."""

    async def ask(broker: Broker) -> str | None:
        rights = Rights(broker)
        try:
            return await rights.access(Identity("chat", user), topic, token)
        finally:
            rights.close()

    return await ask(await ready())


async def ready() -> Broker:
    connection = runtime.own()
    await connection.open()
    await connection.broker.wait_ready()
    return connection.broker


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch, wsgateway_memory: Any) -> None:
    declared.discover()
    monkeypatch.setattr(declared, "topics", {})
    monkeypatch.setattr(marks, "LEEWAY", 0.0)


@pytest.fixture
def ann(db: Any) -> User:
    """A member of the group ``staff``."""
    user = User.objects.create(username="ann", last_login=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    Group.objects.create(name="staff").user_set.add(user)
    return user


def test_members_may_write_until_they_are_removed(
    ann: User, django_capture_on_commit_callbacks: Any
) -> None:
    run('@topic("room", direct=True)')
    assert access("ann") == "write"
    assert access("bob") is None
    assert access("ann", Topic("room", "other")) is None
    token = run("room_token")["topics"].token("room", "staff", user=ann)
    assert access("ann", token=token) == "read"
    with django_capture_on_commit_callbacks(execute=True):
        run("remove_member")["remove_member"](Group.objects.get(), ann)
    assert access("ann", token=token) is None
    assert_not_sent()  # what is revoked is not a message to somebody


def test_those_who_were_deactivated_are_asked_about(ann: User) -> None:
    run('@topic("room", direct=True)')
    token = run("room_token")["topics"].token("room", "staff", user=ann)
    run("deactivate_sleepers")["deactivate_sleepers"](dt.datetime(2026, 2, 1, tzinfo=dt.UTC))
    assert access("ann", token=token) is None


def test_shown_test_passes(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("chat.ws_services")
    module.allow = run('@topic("room", direct=True)')["allow"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chat.ws_services", module)
    monkeypatch.setitem(sys.modules, "chat", ModuleType("chat"))
    name = "test_only_members_may_write"
    getattr(run("RoomTests")["RoomTests"](name), name)()


def test_class_decides(ann: User) -> None:
    run('@topic("document")')
    assert access("ann", Topic("document", "ann-7")) == "write"
    for others in ("bob-7", "ann-marie-7"):  # it began with her name and a hyphen, too
        assert access("ann", Topic("document", others)) == "read"
    assert declared.topics["document"].handler is not None


def test_page_and_view_give_the_token(ann: User, rf: RequestFactory) -> None:
    run('@topic("room", direct=True)')
    request = rf.get("/")
    request.user = ann
    Group.objects.get().user_set.remove(ann)
    html = Template(PAGE.code("load wsgateway", "html")).render(
        Context({"request": request, "group": Group.objects.get()})
    )
    found = re.search('data-topic="(.*?)"\\s+data-token="(.*?)"', html)
    assert found is not None
    assert found[1] == "room.staff"
    assert access("ann", token=found[2]) == "write"
    assert access("bob", token=found[2]) is None
    Group.objects.get().user_set.add(ann)
    response = run("room_token")["room_token"](request, "staff")
    assert access("ann", token=json.loads(response.content)["token"]) == "read"


def test_clients_may_watch_a_lounge(db: Any) -> None:
    run('@topic("lounge", presence=True)')
    assert declared.topics["lounge"].presence
    assert access("ann", Topic("lounge", "1")) == "read"


def test_view_says_who_is_there(ann: User, rf: RequestFactory) -> None:
    run('@topic("room", direct=True)')
    request = rf.get("/")
    request.user = ann
    view = run("def room_people")["room_people"]

    @async_to_sync
    async def asked() -> Any:
        hub = get_hub()
        await hub.open()
        client = Client(hub)
        await client.session.start(Resume())
        await client.subscribe(STAFF)
        try:
            return await sync_to_async(view)(request, "staff")
        finally:
            await client.session.stop()
            await hub.close()

    expected = {"people": ["ann"], "everyone": True, "complete": True}
    assert json.loads(asked().content) == expected


def test_views_send_and_page_through_what_was_sent(ann: User, rf: RequestFactory) -> None:
    run('@topic("room", direct=True)')
    staff = Group(name="staff", pk=7)
    for number in range(51):
        run("def announce")["announce"](staff, str(number))
    run("def post", SENDING)["post"](staff, User(username="ann"), "hello")
    view = run("def room_history")["room_history"]

    def show(user: User, **query: int) -> Any:
        request = rf.get("/", query)
        request.user = user
        return json.loads(view(request, "staff").content)

    with pytest.raises(Http404):
        show(User.objects.create(username="bob"))
    newest = show(ann)
    assert [json.loads(each)["text"] for each in newest["messages"]][-1] == "50"
    assert show(ann, before=newest["before"]) == {"messages": ['{"text":"0"}'], "before": None}
    [posted] = topics.history("room", "7").messages
    assert posted.json() == {"author": "ann", "text": "hello"}


def test_page_goes_on_where_its_history_ends(ann: User, rf: RequestFactory) -> None:
    """A page had to choose between a gap and duplicates: its history had no epoch."""
    run('@topic("room", direct=True)')
    html = Template(PAGE.code("page.position|json_script", "html"))
    names = run("def room(request")
    names["render"] = lambda request, name, context: html.render(Context(context))
    view = names["room"]
    request = rf.get("/")
    request.user = ann

    def position() -> Resume:
        shown = view(request, "staff")
        found = re.search('<script id="position".*?>(.*?)</script>', shown)
        assert found is not None
        return Resume(**json.loads(found[1]))

    @async_to_sync
    async def follow(since: Resume) -> tuple[bool, list[str]]:
        hub = get_hub()
        await hub.open()
        client = Client(hub)
        await client.session.start(Resume())
        try:
            answer = await client.subscribe(STAFF, epoch=since.epoch, offset=since.offset)
            await until(lambda: "after" in client.got(STAFF), what="the last message")
            return answer.recovered, client.got(STAFF)
        finally:
            await client.session.stop()
            await hub.close()

    empty = position()
    send_topic("room", "staff", text="<shown>")
    assert "<li>Django: &lt;shown&gt;</li>" in view(request, "staff")
    between = position()
    send_topic("room", "staff", text="after")
    assert follow(empty) == (True, ["<shown>", "after"])
    assert follow(between) == (True, ["after"])


def test_one_function_decides_about_both_kinds() -> None:
    run('@topic("meeting", direct=True)')
    kinds = {name: service.durable for name, service in declared.topics.items()}
    assert kinds == {"meeting": True, "typing": False}


def test_limits_of_the_page_are_possible(settings: Any) -> None:
    names: dict[str, Any] = {}
    exec(PAGE.code("WSGATEWAY_TOPICS"), names)
    settings.WSGATEWAY_TOPICS = names["WSGATEWAY_TOPICS"]
    assert SETTINGS["WSGATEWAY_TOPICS"].problem() is None


def test_time_limits_of_the_database_are_options_that_psycopg_knows() -> None:
    names: dict[str, Any] = {"DATABASES": {"default": {}}}
    exec(PAGE.code("statement_timeout"), names)
    options = names["DATABASES"]["default"]["OPTIONS"]
    assert conninfo_to_dict(make_conninfo("", **options)).keys() == options.keys()


async def test_python_client_says_who_is_in_the_lounge(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with FakeGateway().running() as fake:
        fake.topic("lounge.1", users=[Inbox("chat", "ann")])
        async with client_of(fake) as client:
            await run("on_readers=show")["enter"](client)
    assert capsys.readouterr().out == "(Inbox(service='chat', user='ann'),)\n"
