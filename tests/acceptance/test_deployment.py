"""``deploy/`` in use: the image's processes, a NATS cluster, nginx and Caddy, rolling restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client

from tests.acceptance import proxies
from tests.acceptance.deployment import (
    container,
    instruction,
    instructions,
    listed,
    tool,
    unit,
)
from tests.acceptance.proxies import Proxy
from tests.acceptance.stack import (
    COMMANDS,
    GATEWAYS,
    METRICS_TOKEN,
    SERVERS,
    SERVICES,
    VALUES,
    Stack,
)
from tests.faults.traffic import Traffic, broker_at
from tests.support import wait_for
from wsgateway.broker.embedded import free_port
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.identity import make_token
from wsgateway.presence.users import find_connections
from wsgateway.protocol.subjects import Inbox

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, in the order of compose.yaml's ``depends_on``."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        for name in SERVERS:
            stack.start_nats(name)
        [collect] = [rest for name, rest in instructions() if name == "RUN" and "static" in rest]
        stack.shell(collect.replace("/venv/bin/python", sys.executable))
        for name in SERVERS:
            stack.wait_until_ready(name)
        stack.shell(shlex.join(SERVICES["release"]["command"]))
        for name in (*GATEWAYS, *COMMANDS):
            stack.launch(name)
        for name in (*GATEWAYS, *COMMANDS):
            stack.wait_until_ready(name)
        yield stack
    finally:
        for process in stack.processes.values():
            process.kill()


@pytest.fixture
def stack(whole: Stack) -> Iterator[Stack]:
    """All of it runs and is ready, whatever the test before this one ended."""
    whole.restore()
    yield whole
    whole.restore()


@pytest.fixture(scope="module")
def started_nginx(whole: Stack) -> Iterator[Proxy]:
    folder = whole.folder / "nginx"
    folder.mkdir()
    ports = [whole.ports[name] for name in GATEWAYS]
    with proxies.nginx(folder, ports, whole.image / "staticfiles") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def started_caddy(whole: Stack) -> Iterator[Proxy]:
    folder = whole.folder / "caddy"
    folder.mkdir()
    with proxies.caddy(folder, [whole.ports[name] for name in GATEWAYS]) as proxy:
        yield proxy


@pytest.fixture
def nginx(stack: Stack, started_nginx: Proxy) -> Proxy:
    wait_for(lambda: started_nginx.get("/readyz")[0] == 200, 30, "nginx finds a gateway")
    return started_nginx


@pytest.fixture
def caddy(stack: Stack, started_caddy: Proxy) -> Proxy:
    """It asks the gateways every two seconds whether they are ready."""
    wait_for(lambda: started_caddy.get("/readyz")[0] == 200, 30, "Caddy finds a gateway")
    return started_caddy


@pytest.fixture
async def broker(stack: Stack) -> AsyncIterator[NatsBroker]:
    async with broker_at(stack.urls, "ws") as broker:
        await broker.wait_ready()
        yield broker


@pytest.fixture(autouse=True)
def stack_secret(settings: Any) -> None:
    """Make tokens that the stack accepts."""
    settings.SECRET_KEY = VALUES["SECRET_KEY"]


# -- the image -----------------------------------------------------------------------------


def test_health_checks_tell_running_from_ready(stack: Stack) -> None:
    check = ["CMD", *listed(instruction("HEALTHCHECK").partition("CMD ")[2])]
    assert stack.is_healthy("gateway-1", check)
    assert stack.is_healthy("gateway-1")
    stack.ports["nobody"] = 1
    assert not stack.is_healthy("nobody", check)
    assert not stack.is_healthy("worker", ["CMD", "test", "-f", "/tmp/unready"])


def test_worker_answers_clients(stack: Stack) -> None:
    """From the socket to NATS, to the handler of the demo, and back."""

    async def ask() -> str:
        token = make_token("demo", "ann")
        url = f"ws://127.0.0.1:{stack.ports['gateway-1']}/ws/demo/?token={token}"
        async with websockets.asyncio.client.connect(url, proxy=None) as socket:
            await socket.send("hello")
            return str(await asyncio.wait_for(socket.recv(), 30))

    assert asyncio.run(ask()) == "echo: hello"


def test_kubernetes_health_checks_ask_for_what_is_there(stack: Stack) -> None:
    worker = container("Deployment", "worker")["readinessProbe"]["exec"]["command"]
    assert stack.is_healthy("worker", ["CMD", *worker])
    gateway, nats = container("Deployment", "gateway"), container("StatefulSet", "nats")
    for spec, port in ((gateway, stack.ports["gateway-1"]), (nats, stack.monitors["nats-1"])):
        proxy = Proxy(f"http://127.0.0.1:{port}", None, stack.folder)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert proxy.get(spec[probe]["httpGet"]["path"], Host="10.0.0.1")[0] == 200


def test_systemd_waits_until_each_is_ready(stack: Stack) -> None:
    """``systemctl restart`` returns once ExecStartPost has, so a rolling restart relies on it."""
    curl = tool("curl", "it is in Debian's package curl")
    checks = {
        "wsgateway-gateway@.service": ("http://127.0.0.1:%i", stack.ports["gateway-1"]),
        "nats-server.service": ("http://127.0.0.1:8222", stack.monitors["nats-1"]),
    }
    for name, (address, port) in checks.items():
        [line] = unit(name)["ExecStartPost"]
        for number, code in ((port, 0), (1, 7)):
            command = line.replace(address, f"http://127.0.0.1:{number}").split()
            command[command.index("--retry") + 1] = "0"
            assert subprocess.run([curl, *command[1:]]).returncode == code
    [line] = unit("wsgateway-worker@.service")["ExecStartPost"]
    [start] = unit("wsgateway-worker@.service")["ExecStart"]
    assert start.endswith(" --ready-file /run/wsgateway-worker-%i/ready")
    waiting = line.replace("/run/wsgateway-worker-%i/", f"{stack.folder}/")
    assert subprocess.run(shlex.split(waiting), timeout=30).returncode == 0


# -- proxies -------------------------------------------------------------------------------


def test_metrics_are_not_public(stack: Stack, nginx: Proxy, caddy: Proxy) -> None:
    token = {"Authorization": f"Bearer {METRICS_TOKEN}"}
    gateway = Proxy(f"http://127.0.0.1:{stack.ports['gateway-1']}", None, stack.folder)
    assert gateway.get("/metrics", **token)[0] == 200
    for proxy in (nginx, caddy):
        for path in ("/metrics", "//metrics", "/%6detrics", "/./metrics"):
            status, _, body = proxy.get(path, **token)
            assert status in (301, 400, 404), path
            assert "wsgateway_" not in body


def test_no_proxy_logs_the_token_of_a_request_that_fails(tmp_path: Path) -> None:
    """Caddy wrote the whole URL into its error log, where the filter did not apply."""
    gateways, secret = [free_port(), free_port()], "s3cret-t0ken"
    folders = [tmp_path / "nginx", tmp_path / "caddy"]
    for folder in folders:
        folder.mkdir()
    running = proxies.nginx(folders[0], gateways, tmp_path), proxies.caddy(folders[1], gateways)
    for folder, start in zip(folders, running, strict=True):
        with start as proxy:
            referer = f"https://localhost/?token={secret}"
            status, _, _ = proxy.get(f"/ws/faults/?token={secret}", Referer=referer)
            assert status in (502, 503)
            wait_for(lambda log=proxy.log: "/ws/faults/" in log.read_text(), 30, "it is logged")
        for path in folder.glob("*.log"):
            assert secret not in path.read_text(), path


def test_pages_and_static_files_through_nginx(stack: Stack, nginx: Proxy) -> None:
    plain = Proxy(f"http://localhost:{nginx.plain}", None, stack.folder)
    status, headers, _ = plain.get("/login/?next=/admin/")
    assert (status, headers["location"]) == (301, "https://localhost/login/?next=/admin/")
    status, headers, body = nginx.get("/login/")
    assert status == 200
    path = re.findall(r'href="(/static/[^"]+\.css)"', body)[0]
    status, headers, _ = nginx.get(path, **{"Accept-Encoding": "gzip"})
    assert status == 200
    assert "immutable" in headers["cache-control"]
    assert headers["content-encoding"] == "gzip"
    status, headers, _ = nginx.get(re.sub(r"\.[0-9a-f]{12}\.", ".", path))
    assert status == 200
    assert "immutable" not in headers["cache-control"]
    for outside in ("/static/../db.sqlite3", "/static../manage.py", "/static/"):
        assert nginx.get(outside)[0] in (400, 403, 404)


async def test_gateway_knows_the_client_and_not_what_it_pretends(
    broker: NatsBroker, nginx: Proxy, caddy: Proxy
) -> None:
    """Daphne believes the first address in X-Forwarded-For, so proxies must not append to it."""
    pretended = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "gopher"}
    # Not one user for both: the first connection is found for a moment after it is closed
    for proxy, inbox in ((nginx, Inbox("faults", "bob")), (caddy, Inbox("faults", "eve"))):
        token = make_token(inbox.service, inbox.user)
        async with websockets.asyncio.client.connect(
            proxy.ws(f"/ws/faults/?token={token}"),
            additional_headers=pretended, ssl=proxy.context, proxy=None,
        ) as socket:  # fmt: skip
            await (await socket.ping())
            async with asyncio.timeout(30):
                while not (found := await find_connections(broker, [inbox]))[inbox]:
                    await asyncio.sleep(0.05)
            [connection] = found[inbox]
            assert connection.address in ("127.0.0.1", "::1")


# -- rolling restarts ----------------------------------------------------------------------


class Visits:
    """Asks a proxy for a page all the time, and notes each answer."""

    def __init__(self, proxy: Proxy) -> None:
        self.statuses: list[int] = []
        self._proxy = proxy

    async def run(self) -> None:
        while True:
            status, _, _ = await asyncio.to_thread(self._proxy.get, "/healthz")
            self.statuses.append(status)
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def busy(broker: NatsBroker, proxy: Proxy, user: str) -> AsyncIterator[Traffic]:
    """Send, receive and ask for pages through *proxy*; at the end, require that all arrived."""
    inbox = Inbox("faults", user)
    visits = Visits(proxy)
    token = make_token(inbox.service, inbox.user)
    url = proxy.ws(f"/ws/{inbox.service}/")
    # On a busy machine, a late pong is not what this is about
    options: dict[str, Any] = {"ssl": proxy.context, "token": token, "ping_timeout": 30.0}
    async with Traffic(broker, url, inbox, 0.01, **options) as traffic:
        task = asyncio.create_task(visits.run())
        try:
            yield traffic
            await traffic.finish()
            assert not task.done(), task
        finally:
            task.cancel()
    assert set(visits.statuses) == {200}
    assert len(visits.statuses) > 20
    assert token not in proxy.log.read_text()
    assert f"/ws/{inbox.service}/" in proxy.log.read_text()


async def test_rolling_restart_behind_proxies_loses_nothing(
    stack: Stack,
    broker: NatsBroker,
    nginx: Proxy,
    caddy: Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """First the gateways, as an upgrade does; then NATS servers, as theirs does.

    No message is lost or comes twice, no page fails, and clients hear nothing but the gateways'
    invitation to come back.
    """
    caplog.set_level(logging.INFO, "wsgateway.client")
    async with busy(broker, nginx, "ann") as ann, busy(broker, caddy, "cyd") as cyd:
        for name in GATEWAYS:
            await asyncio.gather(ann.more(30), cyd.more(30))
            limit = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
            assert await asyncio.to_thread(stack.processes[name].end, within=limit) < limit
            stack.start_gateway(name)
            await asyncio.to_thread(stack.wait_until_ready, name)
        await asyncio.gather(ann.more(30), cyd.more(30))
        lost: list[Any] = [
            record.args for record in caplog.records if record.msg.startswith("lost")
        ]
        assert lost
        assert {reason.code for reason, _delay in lost} == {4001}
        name = SERVERS[0]
        process = stack.processes[name]
        async with broker_at(stack.urls[:1], "ws") as other:
            await other.wait_ready()  # a client of this server, which has to be sent away
            process.send(signal.Signals[SERVICES[name]["stop_signal"]])
            await asyncio.to_thread(process.wait_for_line, "Entering lame duck mode")
            process.send(signal.SIGTERM)  # Kubernetes does so as soon as preStop has returned
            assert await asyncio.to_thread(process.wait, 45) == 0
            assert "Closing existing clients" in process.output
            await asyncio.gather(ann.more(30), cyd.more(30))
            stack.start_nats(name)
            await asyncio.to_thread(stack.wait_until_ready, name)
            await asyncio.gather(ann.more(30), cyd.more(30))
    for each in (*GATEWAYS, *COMMANDS):
        output = stack.processes[each].output
        assert "Traceback" not in output, output


def test_each_process_ends_in_time(stack: Stack) -> None:
    """As process 1 of a container, which the kernel protects from signals without a handler."""
    for name in (*COMMANDS, *GATEWAYS):
        limit = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert stack.processes[name].end(within=limit) < limit
