"""Each row of ``docs/how-to/troubleshooting.md`` is provoked by a test.

See `tests.troubleshooting`. Rows whose test is beside the tests of its part are found by their
marker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import socketserver
import subprocess
import sys
import threading
import wsgiref.simple_server
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import demo_app, make_server

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from tests.authority import Authority
from tests.integration.test_auth_tls import server
from tests.integration.test_jetstream import pretender
from tests.support import ROOT, site_env, until
from tests.troubleshooting import Symptom, marked, rows
from wsgateway import send
from wsgateway.broker import project_server
from wsgateway.broker.embedded import EmbeddedServer, free_port
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import BrokerMisconfigured, ServiceUnknown, WsGatewayError


def test_each_row_has_a_test_and_each_test_has_a_row() -> None:
    in_document = Counter(row.symptom for row in rows())
    assert [text for text, count in in_document.items() if count > 1] == []
    tested = {text for text, _ in marked()}
    missing = in_document.keys() - tested
    assert not missing, f"no test is marked with pytest.mark.troubleshooting({missing})"
    stray = [(text, str(path)) for text, path in marked() if text not in in_document]
    assert not stray, f"docs/how-to/troubleshooting.md has no such row: {stray}"


async def first_error() -> str:
    """Return what use of the broker raises once the cause is known: within ten seconds."""
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        async with asyncio.timeout(10):
            while True:
                with pytest.raises(WsGatewayError) as error:
                    await broker.wait_ready(0.5)
                if not str(error.value).endswith("not connected yet; connecting"):
                    return str(error.value)
    finally:
        await broker.close()


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python beside the site; ``run("manage.py", "check")``."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=site_env(**{"DEBUG": "1", **env}),
        capture_output=True,
        text=True,
        timeout=50,
    )


async def is_ready() -> None:
    """Return once the broker can be used."""
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
    finally:
        await broker.close()


# -- connecting to NATS ------------------------------------------------------------------------


@pytest.mark.troubleshooting("cannot reach NATS at …: connection refused")
async def test_nothing_listens(symptom: Symptom, nats_settings: Any) -> None:
    nats_settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port()}"
    symptom.must_show_in(await first_error())


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "nats.invalid"])
async def test_development_can_use_the_embedded_server(
    nats_settings: Any, host: str, debug: bool
) -> None:
    nats_settings.NATS_BROKER_URL = f"nats://{host}:{free_port()}"
    nats_settings.DEBUG = debug
    text = await first_error()
    assert text.endswith(", or leave NATS_BROKER_URL empty to use the embedded server") is debug
    assert "in NATS_BROKER_URL" in text


async def test_without_the_program_there_is_no_embedded_server_to_use(
    nats_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_server() -> Path:
        raise BrokerMisconfigured("not found")

    monkeypatch.setattr(project_server, "find_server", find_server)
    nats_settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port()}"
    nats_settings.DEBUG = True
    assert (await first_error()).endswith("or correct host and port in NATS_BROKER_URL")


@pytest.mark.troubleshooting("cannot reach NATS at …: the name … does not resolve")
async def test_unknown_host(symptom: Symptom, nats_settings: Any) -> None:
    nats_settings.NATS_BROKER_URL = "nats://nats.invalid:4222"
    symptom.must_show_in(await first_error())


WANTS_LOGIN = {"authorization": {"user": "gate", "password": "s3cret"}}
MARK = pytest.mark.troubleshooting
LOGINS = [
    pytest.param(
        "//",
        {},
        marks=MARK(
            "cannot reach NATS at …: Authorization Violation … the server wants a login and none "
            "is set"
        ),
        id="none",
    ),
    pytest.param(
        "//gate:wr0ng@",
        {},
        marks=MARK(
            "cannot reach NATS at …: Authorization Violation … correct user and password in "
            "NATS_BROKER_URL, and percent-encode special characters there"
        ),
        id="in the URL",
    ),
    pytest.param(
        "//",
        {"USER": "gate", "PASSWORD": "wr0ng"},
        marks=MARK(
            "cannot reach NATS at …: Authorization Violation … correct WSGATEWAY_NATS_USER and "
            "WSGATEWAY_NATS_PASSWORD"
        ),
        id="in the settings",
    ),
]


@pytest.mark.parametrize(("start", "values"), LOGINS)
async def test_wrong_login(
    symptom: Symptom, nats_settings: Any, tmp_path: Path, start: str, values: dict[str, str]
) -> None:
    """All of them asked "is the server running"."""
    for name, value in values.items():
        setattr(nats_settings, f"WSGATEWAY_NATS_{name}", value)
    with server(tmp_path, **WANTS_LOGIN) as nats:
        nats_settings.NATS_BROKER_URL = nats.url.replace("//", start)
        text = await first_error()
    symptom.must_show_in(text)
    assert "wr0ng" not in text


@pytest.mark.troubleshooting(
    'cannot reach NATS at …: Permissions Violation for Subscription to "_INBOX.…"'
)
async def test_user_who_may_not_receive_answers(
    symptom: Symptom, nats_settings: Any, tmp_path: Path
) -> None:
    user = {"user": "gate", "password": "s3cret", "permissions": {"subscribe": ["ws.>"]}}
    with server(tmp_path, authorization={"users": [user]}) as nats:
        nats_settings.NATS_BROKER_URL = nats.url.replace("//", "//gate:s3cret@")
        symptom.must_show_in(await first_error())


@pytest.mark.troubleshooting("cannot reach NATS at …: maximum connections exceeded")
async def test_too_many_connections(symptom: Symptom, nats_settings: Any, tmp_path: Path) -> None:
    with server(tmp_path, max_connections=1) as nats:
        nats_settings.NATS_BROKER_URL = nats.url
        with socket.create_connection(("127.0.0.1", nats.port)) as other:
            other.sendall(b"CONNECT {}\r\nPING\r\n")
            received = b""
            while b"PONG" not in received:  # only then does the server count it
                received += other.recv(4096)
            symptom.must_show_in(await first_error())


STRANGERS = [
    pytest.param(
        b"550 go away\r\n",
        marks=MARK("cannot reach NATS at …: what answers there is not NATS"),
        id="unknown",
    ),
    pytest.param(
        b"-ERR wrong number of arguments for 'ping' command\r\n",
        marks=MARK("cannot reach NATS at …: a Redis server answers there, not NATS"),
        id="redis",
    ),
    pytest.param(
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        marks=MARK("cannot reach NATS at …: an HTTP server answers there, not NATS"),
        id="http",
    ),
    pytest.param(
        b"",
        marks=MARK(
            "cannot reach NATS at …: no answer in time … something accepts connections there and "
            "says nothing"
        ),
        id="silence",
    ),
]


@pytest.mark.parametrize("answer", STRANGERS)
async def test_another_program_listens(symptom: Symptom, nats_settings: Any, answer: bytes) -> None:
    class Stranger(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                if self.request.recv(64):
                    self.request.sendall(answer)
                self.request.recv(64)

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stranger)) as url:
        nats_settings.NATS_BROKER_URL = url
        symptom.must_show_in(await first_error())


@contextlib.contextmanager
def serving(stranger: socketserver.TCPServer) -> Iterator[str]:
    """Run a server that is not NATS; yield the URL that would be its, if it were."""
    thread = threading.Thread(target=stranger.serve_forever, args=(0.05,))
    with stranger:
        thread.start()
        try:
            yield f"nats://127.0.0.1:{stranger.server_address[1]}"
        finally:
            stranger.shutdown()
            thread.join()


def file_server() -> socketserver.TCPServer:
    """``python -m http.server``"""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def django_server() -> socketserver.TCPServer:
    """Django's own ``runserver``."""

    class Handler(WSGIRequestHandler):
        def log_message(self, *args: object) -> None: ...

    return make_server("127.0.0.1", 0, WSGIHandler(), ThreadedWSGIServer, Handler)


def wsgiref_server() -> socketserver.TCPServer:
    class Handler(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, *args: object) -> None: ...

    return make_server("127.0.0.1", 0, demo_app, handler_class=Handler)


@pytest.mark.parametrize("make", [file_server, django_server, wsgiref_server])
async def test_http_servers_are_recognised(
    nats_settings: Any, make: Callable[[], socketserver.TCPServer]
) -> None:
    """Servers of the standard library took the probe for HTTP/0.9, and answered without a status
    line."""
    with serving(make()) as url:
        nats_settings.NATS_BROKER_URL = url
        assert "an HTTP server answers there, not NATS" in await first_error()


@pytest.mark.troubleshooting("cannot reach NATS at …: attempted to connect to leaf node port")
async def test_port_for_other_servers(
    symptom: Symptom, nats_settings: Any, tmp_path: Path, free_port: int
) -> None:
    with server(tmp_path, leafnodes={"listen": f"127.0.0.1:{free_port}"}):
        nats_settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
        symptom.must_show_in(await first_error())


CERTIFICATES = [
    pytest.param(
        "localhost",
        False,
        marks=MARK(
            "cannot reach NATS at …: the server's certificate is not accepted: unable to get "
            "local issuer certificate"
        ),
        id="no CA",
    ),
    pytest.param(
        "127.0.0.1",
        True,
        marks=MARK("cannot reach NATS at …: the server's certificate is not accepted: … mismatch"),
        id="another name",
    ),
    pytest.param(
        "localhost",
        True,
        marks=MARK(
            "cannot reach NATS at …: the server refuses the TLS handshake … it wants a client "
            "certificate"
        ),
        id="no client certificate",
    ),
]


@pytest.mark.parametrize(("host", "ca"), CERTIFICATES)
async def test_certificates(
    symptom: Symptom, nats_settings: Any, tmp_path: Path, host: str, ca: bool
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", ip=False)
    tls = {"cert_file": certificate, "key_file": key, "ca_file": str(authority.path)}
    nats_settings.WSGATEWAY_NATS_TLS_CA = str(authority.path) if ca else ""
    with server(tmp_path, tls={**tls, "verify": True}) as nats:
        nats_settings.NATS_BROKER_URL = f"tls://{host}:{nats.port}"
        symptom.must_show_in(await first_error())


@pytest.mark.troubleshooting(
    "cannot reach NATS at …: the server offers no TLS, but the settings or its URL demand it"
)
async def test_server_without_tls(symptom: Symptom, nats_settings: Any) -> None:
    nats_settings.NATS_BROKER_URL = nats_settings.NATS_BROKER_URL.replace("nats:", "tls:")
    symptom.must_show_in(await first_error())


@pytest.mark.troubleshooting(
    "NATS … is too old: batched direct get and per-message TTL need 2.11 or later"
)
async def test_old_server(symptom: Symptom, nats_settings: Any) -> None:
    async with pretender(version="2.10.9", jetstream=True) as nats_settings.NATS_BROKER_URL:
        symptom.must_show_in(await first_error())


@pytest.mark.troubleshooting("runs without JetStream; start it with -js")
async def test_server_without_jetstream(symptom: Symptom, nats_settings: Any) -> None:
    async with pretender() as nats_settings.NATS_BROKER_URL:
        symptom.must_show_in(await first_error())


@pytest.mark.troubleshooting("stream … has max_age …, settings want …")
def test_stream_that_differs(
    symptom: Symptom, nats_settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    call_command("setup_streams")
    nats_settings.WSGATEWAY_INBOX_MAX_AGE = 3600.0
    asyncio.run(is_ready())
    symptom.must_show_in(caplog.text)
    caplog.clear()
    call_command("setup_streams")
    asyncio.run(is_ready())
    assert not symptom.is_in(caplog.text)


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.troubleshooting("(wsgateway.E001) Unknown setting WSGATEWAY_…")
def test_unknown_setting(symptom: Symptom, settings: Any) -> None:
    settings.WSGATEWAY_REPLICA = 3
    with pytest.raises(SystemCheckError) as error:
        call_command("check")
    symptom.must_show_in(str(error.value))
    assert "Did you mean WSGATEWAY_REPLICAS?" in str(error.value)


@pytest.mark.troubleshooting(
    "NATS_BROKER_URL has an entry that is not the URL of a NATS server: "
    "scheme 'ws': NATS over websockets is not supported"
)
def test_websocket_url(symptom: Symptom, settings: Any) -> None:
    settings.NATS_BROKER_URL = "ws://localhost:8080"
    with pytest.raises(SystemCheckError) as error:
        call_command("check")
    symptom.must_show_in(str(error.value))
    assert "Use nats://host:4222" in str(error.value)


# -- starting and stopping ---------------------------------------------------------------------


@pytest.mark.troubleshooting("lost the connection to NATS (…), reconnecting")
async def test_server_that_restarts(
    symptom: Symptom,
    nats_settings: Any,
    own_server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    nats_settings.NATS_BROKER_URL = own_server.url
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
        await asyncio.to_thread(own_server.stop)
        await until(lambda: symptom.is_in(caplog.text), what="the warning")
        caplog.clear()
        await own_server.astart()
        await broker.wait_ready()
        assert not symptom.is_in(caplog.text)
    finally:
        await broker.close()


# -- sending and services ----------------------------------------------------------------------

ENQUEUE = """
from django.conf import settings
settings.configure(INSTALLED_APPS=["wsgateway"])
import django
django.setup()
from wsgateway.outbox import enqueue
"""


@pytest.mark.troubleshooting("the outbox has no table: add 'wsgateway.outbox' to INSTALLED_APPS")
def test_outbox_that_is_not_installed(symptom: Symptom) -> None:
    """Django's error spoke of an explicit app_label."""
    done = run("-c", ENQUEUE)
    assert done.returncode == 1
    symptom.must_show_in(done.stderr)


UNMIGRATED = """
import json
import sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["wsgateway", "wsgateway.outbox"],
    DATABASES=dict.fromkeys(["default", "other"], json.loads(sys.argv[1])),
    PUBSUB_BROKER="memory",
)
import django
django.setup()
from django.core.management import call_command
from wsgateway.outbox import enqueue
"""


@pytest.mark.parametrize(
    ("call", "command"),
    [
        ("call_command('runoutbox')", "manage.py migrate"),
        ("call_command('runoutbox', '--once')", "manage.py migrate"),
        ("call_command('runoutbox', database='other')", "manage.py migrate --database=other"),
        ("enqueue('orders', 'ann', text='x')", "manage.py migrate"),
        ("enqueue('orders', 'ann', text='x', using='other')", "manage.py migrate --database=other"),
    ],
)
@pytest.mark.troubleshooting(
    "the outbox's table in database … is missing or out of date; run \"manage.py migrate"
)
def test_outbox_without_migrations(
    symptom: Symptom, tmp_path: Path, call: str, command: str
) -> None:
    """`runoutbox` waited for ever, because SQLite says it as it says what may pass."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db")}
    done = run("-c", UNMIGRATED + call, json.dumps(database))
    assert done.returncode == 1
    symptom.must_show_in(done.stderr)
    assert done.stderr.strip().endswith(f'run "{command}"')


@pytest.mark.parametrize("call", ["call_command('runoutbox')", "enqueue('orders', 'a', text='x')"])
def test_outbox_without_migrations_on_postgresql(postgresql_server: str, call: str) -> None:
    url = urlsplit(postgresql_server)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "template1",
        "HOST": url.hostname,
        "PORT": url.port,
        "USER": url.username,
    }
    done = run("-c", UNMIGRATED + call, json.dumps(database))
    assert done.stderr.strip().endswith('run "manage.py migrate"')


@pytest.mark.troubleshooting("service … does not exist; did you mean …? Otherwise declare it")
def test_service_that_does_not_exist(symptom: Symptom, settings: Any) -> None:
    settings.WSGATEWAY_SERVICES = ["orders"]
    with pytest.raises(ServiceUnknown) as error:
        send("ordres", "ann", text="x")
    symptom.must_show_in(str(error.value))
    assert send("orders", "ann", text="x").offset
