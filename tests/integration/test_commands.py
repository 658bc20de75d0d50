"""Commands as scripts and operators use them: output, JSON, questions, exit codes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from tests.commands import ESCAPES, Site
from tests.support import ROOT, Process, running
from wsgateway import send
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.work import Job
from wsgateway.management.exits import Exit
from wsgateway.protocol.subjects import Inbox
from wsgateway.services.deadletters import set_aside
from wsgateway.testing.isolation import empty_store

ANN = Inbox("orders", "ann")


@pytest.fixture
def site(tmp_path: Path, nats_server: EmbeddedServer, prefix: str) -> Site:
    return Site(tmp_path, NATS_BROKER_URL=nats_server.url, WSGATEWAY_PREFIX=prefix)


@pytest.fixture
def away(tmp_path: Path, free_port: int) -> Site:
    """A site whose broker is down."""
    url = f"nats://127.0.0.1:{free_port}"
    return Site(tmp_path, NATS_BROKER_URL=url, WSGATEWAY_BROKER_TIMEOUT="0.5")


@pytest.fixture
def letters(nats_settings: Any) -> None:
    """Two dead letters, at the offsets 1 and 2."""

    async def fill(broker: Broker) -> None:
        for number, service in ((1, "orders"), (2, "service1")):
            headers = {"Ws-Client-Id": f"c{number}"}
            job = Job(
                Inbox(service, "ann"), b'{"n": 1}', headers, sequence=number, id=f"S.{number}"
            )
            await set_aside(broker, job, ValueError(f"bad\x1b[31m {number}"))

    runtime.call_sync(fill)


def failed(*arguments: str, **options: Any) -> CommandError:
    with pytest.raises(CommandError) as error:
        call_command(*arguments, **options)
    return error.value


# -- publish, gateway send ---------------------------------------------------------------


def test_publish_in_a_pipe(site: Site) -> None:
    first = site.run("publish", "orders", "ann", "hello")
    assert (first.code, first.err) == (0, "")
    assert re.fullmatch(r"stored at offset \d+\n", first.out)
    again = site.run("publish", "orders", "ann", "-", "--id", "a", "--json", stdin=b"\xff\x00")
    assert again.json == {"offset": 2, "duplicate": False}
    assert site.run("publish", "orders", "ann", "x", "--id", "a", "--json").json == {
        "offset": 2,
        "duplicate": True,
    }


@pytest.mark.usefixtures("nats_settings")
def test_send_checks_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("gateway", "send", "orders", "ann", '{"state": "shipped"}', "--type", "json")
    assert re.fullmatch(r"stored at offset \d+\n", capsys.readouterr().out)
    bad = failed("gateway", "send", "orders", "ann", "{state: shipped}", "--type", "json")
    assert "the message is not JSON" in str(bad)
    assert bad.returncode == Exit.USAGE
    assert failed("gateway", "send", "orders", "ann", "x", "--ttl", "0.5").returncode == Exit.USAGE
    assert failed("gateway", "send", "orders", "", "x").returncode == Exit.USAGE


def test_send_reads_standard_input(site: Site) -> None:
    done = site.run("gateway", "send", "orders", "ann", "-", "--type", "text", stdin=b"\xff")
    assert done.code == Exit.USAGE
    assert "not UTF-8; use --type binary" in done.err
    done = site.run("gateway", "send", "orders", "ann", "-", "--type", "binary", stdin=b"\xff")
    assert (done.code, done.out) == (0, "stored at offset 1\n")


# -- errors ------------------------------------------------------------------------------

NEED_THE_BROKER = [
    ["publish", "orders", "ann", "x"],
    ["deadletters", "list"],
    ["setup_streams"],
    ["gateway", "send", "orders", "ann", "x"],
]


@pytest.mark.parametrize("arguments", NEED_THE_BROKER, ids=lambda each: " ".join(each[:2]))
def test_broker_that_is_down(
    arguments: list[str], settings: Any, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    settings.WSGATEWAY_BROKER_TIMEOUT = 0.3
    error = failed(*arguments)
    assert error.returncode == Exit.UNAVAILABLE
    assert f"cannot reach NATS at 127.0.0.1:{free_port}" in str(error)
    assert capsys.readouterr().out == ""
    runtime.stop_background()  # or it asks for the server until the process ends


def test_error_is_one_line_on_standard_error(away: Site) -> None:
    done = away.run("deadletters", "list", "--json")
    assert (done.code, done.out) == (Exit.UNAVAILABLE, "")
    assert done.err.splitlines()[-1].startswith("CommandError: cannot reach NATS at 127.0.0.1:")
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("nats_settings")
def test_service_that_does_not_exist(settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["orders"]
    for arguments in (["publish"], ["gateway", "send"]):
        error = failed(*arguments, "oders", "ann", "x")
        assert error.returncode == Exit.UNKNOWN
        assert "service 'oders' does not exist; did you mean 'orders'?" in str(error)


def test_wrong_arguments_are_usage_errors(site: Site) -> None:
    done = site.run("gateway", "sned", "orders", "ann", "x")
    assert done.code == Exit.USAGE
    assert "invalid choice: 'sned'" in done.err
    assert site.run("deadletters", "purge").code == Exit.USAGE


@pytest.mark.parametrize("offset", ["-1", "9" * 23, "one"])
@pytest.mark.parametrize("action", ["show", "retry", "purge"])
def test_offset_that_cannot_be_is_a_usage_error(action: str, offset: str) -> None:
    """JetStream was asked, and answered with an error of its own, code 1."""
    error = failed("deadletters", action, "--", offset)
    assert f"{offset!r} is not a whole number of 0 or more" in str(error)


@pytest.mark.usefixtures("nats_settings")
def test_there_is_no_dead_letter_0() -> None:
    """JetStream was asked for it, and refused with an error of its own."""
    error = failed("deadletters", "show", "0")
    assert (error.returncode, str(error)) == (Exit.UNKNOWN, "there is no dead letter 0")


@pytest.mark.usefixtures("nats_settings")
def test_empty_name_is_not_everybody() -> None:
    """``who orders "$NAME"`` listed all users if NAME was not set."""
    error = failed("gateway", "who", "orders", "")
    assert error.returncode == Exit.USAGE
    assert "name '' is empty" in str(error)


def test_nobody_reads_the_output(site: Site) -> None:
    """``| head -1`` ended with a traceback."""
    with subprocess.Popen(
        site.command("publish", "orders", "ann", "x"),
        cwd=ROOT,
        env=site.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
        process.wait(60)
    assert "Traceback" not in errors
    assert "BrokenPipeError" not in errors


# -- dead letters ------------------------------------------------------------------------


@pytest.mark.usefixtures("letters")
def test_dead_letters_in_a_pipe_are_lines_with_tabs(site: Site) -> None:
    """As they were before there were tables; scripts cut them."""
    lines = site.run("deadletters", "list").lines
    assert [line.split("\t")[::2] for line in lines] == [
        ["1", "orders", "1 attempts"],
        ["2", "service1", "1 attempts"],
    ]
    assert lines[0].endswith(r"ValueError: bad\x1b[31m 1")


@pytest.mark.usefixtures("letters")
def test_dead_letters_in_a_terminal_are_a_table(site: Site) -> None:
    shown = site.show("deadletters", "list")
    assert shown.code == 0
    lines = ESCAPES.sub("", shown.out).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 80
    assert any(re.match(r"Offset +Set aside +Service +User +Tries +Error", each) for each in lines)
    assert any(re.match(r" +1 +2\d{3}-\S+ \S+ +orders +ann +1 +ValueError", each) for each in lines)


@pytest.mark.usefixtures("letters")
def test_dead_letters_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    def result(*arguments: str) -> Any:
        call_command("deadletters", *arguments, "--json")
        return json.loads(capsys.readouterr().out)

    first, second = result("list")
    assert set(first) == {
        *("offset", "time", "service", "topic", "user", "user_service"),
        *("attempts", "error", "size", "shortened"),
    }
    assert [first["offset"], first["service"], first["user"]] == [1, "orders", "ann"]
    assert first["error"] == r"ValueError: bad\x1b[31m 1"
    assert result("list", "--service", "service1") == [second]
    shown = result("show", "1")
    assert shown["text"] == '{"n": 1}'
    assert shown["headers"] == {"Ws-Client-Id": "c1"}
    assert "ValueError" in shown["traceback"]
    assert result("retry", "1") == {"put_back": 1, "problems": []}
    assert result("purge", "--all", "--yes") == {"purged": 1, "problems": []}
    assert result("list") == []
    with pytest.raises(CommandError) as error:
        call_command("deadletters", "show", "99", "--json")
    assert error.value.returncode == Exit.UNKNOWN


def test_dead_letter_of_a_topic_names_topic_and_writer(
    nats_settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def bury(broker: Broker) -> None:
        ann, headers = Inbox("orders", "ann"), {"Ws-Topic": "room.42"}
        job = Job(ann, b"{}", headers, sequence=1, id="S.1", service="room")
        await set_aside(broker, job, ValueError("bad"))

    runtime.call_sync(bury)
    call_command("deadletters", "show", "1")
    lines = capsys.readouterr().out.splitlines()
    assert {"service   room", "topic     room.42", "user      ann (orders)"} <= set(lines)
    call_command("deadletters", "list", "--service", "room", "--json")
    [letter] = json.loads(capsys.readouterr().out)
    found = [letter[name] for name in ("service", "topic", "user", "user_service")]
    assert found == ["room", "room.42", "ann", "orders"]


@pytest.mark.usefixtures("letters")
def test_purge_asks(site: Site) -> None:
    """In a pipe it asked nobody, and deleted."""
    unasked = site.run("deadletters", "purge", "--all")
    assert (unasked.code, unasked.out) == (Exit.USAGE, "")
    refused = site.show("deadletters", "purge", "--all", typed="n\n")
    assert refused.code == Exit.FAILED
    assert "Delete all dead letters for good?" in refused.out
    assert "nothing was done" in refused.out
    agreed = site.show("deadletters", "purge", "1", typed="y\n")
    assert agreed.code == 0
    assert "1 purged" in agreed.out
    assert site.run("deadletters", "purge", "--all", "--no-input").lines == ["1 purged"]


@pytest.mark.usefixtures("letters")
def test_progress_is_shown_in_a_terminal_only(site: Site) -> None:
    shown = site.show("deadletters", "retry", "--all", TERM="xterm-256color")
    assert shown.code == 0
    assert "dead letters" in shown.out
    assert ESCAPES.sub("", shown.out).splitlines()[-1].endswith("2 put back")
    piped = site.run("deadletters", "retry", "--all")
    assert (piped.out, piped.err) == ("0 put back\n", "")


# -- setup_streams -----------------------------------------------------------------------


def test_setup_streams(site: Site, prefix: str) -> None:
    done = site.run("setup_streams", "--json")
    name = f"{prefix.upper()}_RECV"
    assert {"name": name, "result": "created"} in done.json
    assert site.run("setup_streams").lines[0] == f"{name}: up to date"
    shown = ESCAPES.sub("", site.show("setup_streams").out)
    assert re.search(rf"{name} +up to date", shown)


# -- what runs until a signal ------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_runservice_as_json(site: Site, tmp_path: Path, number: signal.Signals) -> None:
    arguments = ("runservice", "counted", "--noreload", "--json")
    env = {**site.env, "DJANGO_SETTINGS_MODULE": "tests.service_app.settings"}
    with running(Process(site.command(*arguments), tmp_path / "log", env)) as worker:
        worker.spawn()
        worker.wait_for_line('"ready"')
        worker.send(number)
        assert worker.wait() == 0
        lines = [json.loads(each) for each in worker.output.splitlines() if each.startswith("{")]
    assert lines == [
        {"event": "ready", "service": "counted"},
        {"event": "ended", "service": "counted", "counts": {}},
    ]


def test_runoutbox_as_json(site: Site, tmp_path: Path) -> None:
    assert site.run("migrate", "wsgateway_outbox").code == 0
    assert site.run("runoutbox", "--once", "--json").json == {"relayed": 0}
    assert "0 relayed" in site.show("runoutbox", "--once").out
    relay = Process(site.command("runoutbox", "--json"), tmp_path / "log", site.env)
    with running(relay):
        relay.spawn()
        relay.wait_for_line('"ready"')
        relay.send(signal.SIGTERM)
        assert relay.wait() == 0
        lines = [json.loads(each) for each in relay.output.splitlines() if each.startswith("{")]
    assert lines == [{"event": "ready"}, {"event": "ended", "relayed": 0}]


def test_runservice_without_a_handler(site: Site) -> None:
    done = site.run("runservice", "nothing")
    assert done.code == Exit.UNKNOWN
    assert "CommandError: no service 'nothing'" in done.err


def test_gateway_commands_in_one_process_without_a_server(
    settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.PUBSUB_BROKER = "memory"
    empty_store()
    first = send("orders", "ann", text="x").offset

    def result(*arguments: str) -> Any:
        call_command("gateway", *arguments, "--json")
        printed = capsys.readouterr()
        assert "PUBSUB_BROKER is 'memory'" in printed.err
        return json.loads(printed.out)

    assert result("send", "orders", "ann", "y") == {"offset": first + 1, "duplicate": False}
    found = result("inbox", "orders", "ann")
    assert [each["text"] for each in found["stored"]] == ["x", "y"]
    assert result("tail", "orders", "ann", "--last", "1", "--count", "1")["text"] == "y"
    assert result("who", "orders") == {"service": "orders", "users": {}, "silent": []}
    assert result("who", "orders", "ann")["online"] is False
    assert result("disconnect", "orders", "ann", "--no-input")["sockets"] == 0
    assert result("purge", "orders", "ann", str(first), "--yes") == {"deleted": 1, "missing": []}
    assert result("purge", "orders", "ann", "--yes") == {"deleted": 1, "missing": []}
    assert result("status")["gateways"] == []
    nobody = failed("gateway", "drain", "nobody", "--no-input")
    assert nobody.returncode == Exit.UNKNOWN
    assert "no gateway 'nobody'; those that answer: none" in str(nobody)
