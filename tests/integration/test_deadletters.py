"""Dead letters as an operator meets them: the command, and the admin."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import Client

from wsgateway.broker import runtime
from wsgateway.broker.work import Job
from wsgateway.exceptions import BrokerUnavailable
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.deadletters import letters, purge, retry, set_aside
from wsgateway.testing.isolation import empty_store


@pytest.fixture
def offsets(nats_settings: Any) -> list[int]:
    """Two dead letters, of two services."""

    async def fill(broker: Any) -> None:
        for number, service in ((1, "orders"), (2, "service1")):
            headers = {"Ws-Client-Id": f"c{number}", "Ws-Frame": "text"}
            poison, ann = b"<b>poison</b>", Inbox(service, "ann")
            job = Job(ann, poison, headers, sequence=number, id=f"S.{number}", deliveries=5)
            job.attempt = 5
            try:
                raise ValueError(f"bad {number}")
            except ValueError as exc:
                await set_aside(broker, job, exc)
                await set_aside(broker, job, exc)  # idempotent

    runtime.call_sync(fill)
    return [1, 2]


def queue(prefix: str) -> dict[str, Any]:
    async def ask(broker: Any) -> Any:
        return await broker.jetstream.api(f"STREAM.INFO.{prefix.upper()}_SEND_orders")

    return dict(runtime.call_sync(ask)["state"])


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    from wsgateway.broker import runtime

    runtime.reset()
    call_command("deadletters", *arguments)
    return capsys.readouterr().out


def test_command(offsets: list[int], capsys: pytest.CaptureFixture[str], prefix: str) -> None:
    lines = output(capsys, "list").splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"1\t\S+\torders\tann\t5 attempts\tValueError: bad 1", lines[0])
    assert "\tservice1\t" in output(capsys, "list", "--service", "service1")
    shown = output(capsys, "show", "1")
    assert "Ws-Client-Id: c1" in shown
    assert "Traceback (most recent call last)" in shown
    assert "raise ValueError" in shown
    with pytest.raises(CommandError, match="no dead letter 99"):
        output(capsys, "show", "99")
    with pytest.raises(CommandError, match="give offsets, or --all"):
        output(capsys, "purge")
    with pytest.raises(CommandError, match="no dead letter 99"):
        output(capsys, "retry", "1", "99")
    assert capsys.readouterr().out == "1 put back\n"
    assert queue(prefix)["messages"] == 1
    with pytest.raises(CommandError, match="no one can confirm this; pass --no-input"):
        output(capsys, "purge", "--all")
    assert output(capsys, "purge", "--all", "--no-input") == "1 purged\n"
    assert output(capsys, "list") == ""


def test_retry_and_purge_are_idempotent(offsets: list[int], prefix: str) -> None:
    """The second of two operators got a bare ApiError."""

    async def act(broker: Any) -> None:
        letter, other = [letter async for letter in letters(broker)]
        await retry(broker, letter)
        await retry(broker, letter)
        await purge(broker, letter)
        await purge(broker, other)
        await purge(broker, other)
        assert [letter async for letter in letters(broker)] == []

    runtime.call_sync(act)
    assert queue(prefix)["messages"] == 1


@pytest.mark.django_db
def test_admin(offsets: list[int], client: Client, prefix: str) -> None:
    users = get_user_model()._default_manager
    client.force_login(users.create_superuser("root"))
    url = "/admin/wsgateway/deadletterentry/"
    page = client.get(url).content.decode()
    assert "ValueError: bad 1" in page
    assert "ValueError: bad 2" in page
    page = client.get(url, {"service": "service1"}).content.decode()
    assert "bad 1" not in page
    page = client.get(f"{url}1/change/").content.decode()
    assert "&lt;b&gt;poison&lt;/b&gt;" in page
    assert "raise ValueError" in page
    assert client.get(f"{url}99/change/").status_code == 404
    page = client.post(url, {"retry": "", "offset": "1"}, follow=True).content.decode()
    assert "1 dead letter(s) put back into the queue." in page
    assert queue(prefix)["messages"] == 1
    assert client.post(url, {"offset": ["2"]}).status_code == 400
    page = client.post(url, {"purge": "", "offset": ["2"]}).content.decode()
    assert "What the clients sent is lost" in page
    assert "bad 2" in client.get(url).content.decode()
    client.post(url, {"purge": "", "offset": ["2"], "confirmed": "yes"})
    assert "There are no dead letters" in client.get(url).content.decode()
    done = LogEntry.objects.values_list("object_id", "action_flag", "change_message")
    assert set(done) == {("1", CHANGE, "Put back into the queue."), ("2", DELETION, "Purged.")}
    page = client.get(f"{url}1/history/").content.decode()
    assert "Put back into the queue." in page


@pytest.mark.django_db
def test_admin_logs_what_was_done_before_the_broker_went(
    offsets: list[int], client: Client, monkeypatch: Any
) -> None:
    async def purge_one(broker: Any, letter: Any) -> None:
        if letter.offset == 2:
            raise BrokerUnavailable("no answer within 5 s")
        await purge(broker, letter)

    monkeypatch.setattr("wsgateway.services.deadletters.purge", purge_one)
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    form = {"purge": "", "offset": ["1", "2"], "confirmed": "yes"}
    page = client.post("/admin/wsgateway/deadletterentry/", form, follow=True).content.decode()
    assert "topped at dead letter 2: no answer within 5 s" in page
    assert "1 dead letter(s) purged." in page
    assert set(LogEntry.objects.values_list("object_id", "change_message")) == {
        ("1", "Purged."),
        ("2", "Perhaps purged; not confirmed by the broker."),
    }


@pytest.mark.django_db
def test_numbers_in_forms_and_links_are_not_for_people(client: Client, settings: Any) -> None:
    """With thousand separators, the form sent 1,001, which was not an offset."""
    settings.PUBSUB_BROKER = "memory"
    settings.USE_THOUSAND_SEPARATOR = True
    empty_store()

    async def fill(broker: Any) -> None:
        for number in range(1, 1003):
            job = Job(Inbox("orders", "ann"), b"x", {}, sequence=number, id=f"S.{number}")
            await set_aside(broker, job, ValueError("bad"))

    runtime.call_sync(fill)
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    url = "/admin/wsgateway/deadletterentry/"
    assert "&amp;after=1000" in client.get(url, {"after": "900"}).content.decode()
    assert 'value="1001"' in client.get(url, {"after": "1000"}).content.decode()
    assert 'value="1001"' in client.get(f"{url}1001/change/").content.decode()
    page = client.post(url, {"purge": "", "offset": "1001"}).content.decode()
    assert 'value="1001"' in page


@pytest.mark.django_db
def test_admin_acts_on_all_of_a_service(offsets: list[int], client: Client, prefix: str) -> None:
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    url = "/admin/wsgateway/deadletterentry/"
    page = client.post(f"{url}?service=orders", {"retry_all": ""}).content.decode()
    assert "the oldest 1,000 dead letters in orders back into the queue?" in page
    assert queue(prefix)["messages"] == 0
    form = {"retry_all": "", "confirmed": "yes"}
    page = client.post(f"{url}?service=orders", form, follow=True).content.decode()
    assert "1 dead letter(s) put back into the queue." in page
    assert queue(prefix)["messages"] == 1
    assert "bad 2" in client.get(url).content.decode()
    client.post(url, {"purge_all": ""})
    assert "bad 2" in client.get(url).content.decode()
    client.post(url, {"purge_all": "", "confirmed": "yes"})
    assert "There are no dead letters" in client.get(url).content.decode()
    done = LogEntry.objects.values_list("object_id", "action_flag")
    assert set(done) == {("1", CHANGE), ("2", DELETION)}


@pytest.mark.django_db
def test_admin_reads_page_by_page(offsets: list[int], client: Client, monkeypatch: Any) -> None:
    """The two hundred oldest were shown, and those behind them could not be reached."""
    monkeypatch.setattr("wsgateway.admin.dead_letters.SHOWN", 1)
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    url = "/admin/wsgateway/deadletterentry/"
    page = client.get(url).content.decode()
    assert "bad 1" in page
    assert "bad 2" not in page
    assert "?service=&amp;user=&amp;after=1" in page
    page = client.get(url, {"after": "1"}).content.decode()
    assert "bad 1" not in page
    assert "bad 2" in page
    assert "after=2" not in page


@pytest.fixture
def of_three(settings: Any) -> None:
    """A dead letter each of two users, the second in two services."""
    settings.PUBSUB_BROKER = "memory"
    empty_store()

    async def fill(broker: Any) -> None:
        for number, inbox in enumerate(
            (Inbox("orders", "ann"), Inbox("orders", "b.o"), Inbox("chat", "b.o")), 1
        ):
            job = Job(inbox, b"x", {}, sequence=number, id=f"S.{number}")
            await set_aside(broker, job, ValueError(f"bad {number}"))

    runtime.call_sync(fill)


@pytest.mark.django_db
@pytest.mark.usefixtures("of_three")
def test_admin_finds_and_purges_those_of_a_user(client: Client) -> None:
    """There was no search: one user's could be found by reading all pages."""
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    url = "/admin/wsgateway/deadletterentry/"

    def shown(**query: str) -> list[str]:
        return re.findall(r"ValueError: bad (\d)", client.get(url, query).content.decode())

    assert shown(user="b.o") == ["2", "3"]
    assert shown(user="b.o", service="chat") == ["3"]
    assert shown(user="b.o", after="2") == ["3"]
    assert shown(user="b") == []
    assert "of b in chat" in client.get(url, {"user": "b", "service": "chat"}).content.decode()
    assert client.get(url, {"user": "x" * 300}).status_code == 200
    question = client.post(f"{url}?user=b.o", {"purge_all": ""}).content.decode()
    assert "the oldest 1,000 dead letters of b.o?" in question
    client.post(f"{url}?user=b.o", {"purge_all": "", "confirmed": "yes"})
    assert shown() == ["1"]


@pytest.mark.usefixtures("of_three")
def test_command_finds_and_pages(capsys: pytest.CaptureFixture[str]) -> None:
    """It printed all of them, however many there were."""

    def shown(*options: str) -> list[str]:
        call_command("deadletters", "list", *options)
        return [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]

    assert shown("--user", "b.o") == ["2", "3"]
    assert shown("--user", "b.o", "--service", "orders") == ["2"]
    assert shown("--limit", "2") == ["1", "2"]
    assert shown("--limit", "2", "--after", "2") == ["3"]
    call_command("deadletters", "purge", "--all", "--user", "b.o", "--no-input")
    assert capsys.readouterr().out == "2 purged\n"
    assert shown() == ["1"]


@pytest.mark.django_db
@pytest.mark.parametrize("page", ["1/delete/", "add/"])
def test_admin_has_no_pages_that_ask_a_table(client: Client, page: str) -> None:
    """Django's own view asked the database for a table that does not exist."""
    client.force_login(get_user_model()._default_manager.create_superuser("root"))
    assert client.get(f"/admin/wsgateway/deadletterentry/{page}").status_code == 403


@pytest.mark.django_db
def test_admin_wants_permissions(offsets: list[int], client: Client) -> None:
    from django.contrib.auth.models import Permission

    users = get_user_model()._default_manager
    staff = users.create_user("staff", is_staff=True)
    client.force_login(staff)
    url = "/admin/wsgateway/deadletterentry/"
    assert client.get(url).status_code == 403
    staff.user_permissions.add(Permission.objects.get(codename="view_deadletterentry"))
    page = client.get(url)
    assert page.status_code == 200
    assert "Purge selected" not in page.content.decode()
    for action in ("retry", "purge", "retry_all", "purge_all"):
        assert client.post(url, {action: "", "offset": "1"}).status_code == 403
        form = {action: "", "offset": "1", "confirmed": "yes"}
        assert client.post(url, form).status_code == 403
    assert not LogEntry.objects.exists()


@pytest.mark.django_db
def test_admin_says_when_the_broker_is_away(client: Client, settings: Any, free_port: int) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.3
    users = get_user_model()._default_manager
    client.force_login(users.create_superuser("root"))
    page = client.get("/admin/wsgateway/deadletterentry/")
    assert page.status_code == 200
    content = page.content.decode()
    assert "Cannot reach NATS" in content
    assert "There are no dead letters" not in content


def test_command_in_one_process_without_a_server(
    settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.PUBSUB_BROKER = "memory"
    empty_store()

    async def fill(broker: Any) -> None:
        for number in (1, 2):
            job = Job(Inbox("orders", "ann"), b"x", {}, sequence=number, id=f"S.{number}")
            await set_aside(broker, job, ValueError(f"bad {number}"))

    runtime.call_sync(fill)
    call_command("deadletters", "retry", "1")
    call_command("deadletters", "list")
    assert capsys.readouterr().out.startswith("1 put back\n2\t")
