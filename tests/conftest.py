"""Fixtures: real servers and gateways, on free ports and temporary stores."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from asgiref.sync import SyncToAsync

from tests.support import ROOT, Gateway, PostgresServer, forget_connections, forker
from tests.troubleshooting import Symptom
from wsgateway.broker import embedded, runtime
from wsgateway.broker.cluster import Cluster
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings

pytest_plugins = ["tests.hanging", "tests.scheduling"]

# The machines that run this are shared: what is slow for once is not wrong.
hypothesis.settings.register_profile(
    "shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared")

# A shell that runs the tests in the background has them ignore SIGINT, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A power loss during the tests costs nothing; fsync for each message would cost minutes.
SYNC_INTERVAL = "10s"


def pytest_report_header() -> str:
    """Say which nats-server the tests run with."""
    server = embedded.find_server()
    return subprocess.run([server, "--version"], capture_output=True, text=True).stdout.strip()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark tests that start gateways.

    Refuse a test that claims a row of the troubleshooting table and never looks at it.
    """
    fixtures = getattr(item, "fixturenames", ())
    if "gateway_factory" in fixtures:
        item.add_marker("gateway")
    marked = item.get_closest_marker("troubleshooting") is not None
    if marked != ("symptom" in fixtures):
        raise pytest.UsageError(
            f"{item.nodeid}: pytest.mark.troubleshooting and the fixture symptom belong together"
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long: the last one to begin keeps everybody waiting."""
    long = {
        item.path
        for item in items
        if item.path.parent.name in ("faults", "acceptance")
        or item.get_closest_marker("timeout")
        or item.get_closest_marker("gateway")
    }
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let what forks processes import all that it needs now, rather than in a test's time."""
    if hasattr(session.config, "workerinput"):
        forker()


@pytest.fixture
def symptom(request: pytest.FixtureRequest) -> Iterator[Symptom]:
    """What the troubleshooting row shows that the test's marker names."""
    marker = request.node.get_closest_marker("troubleshooting")
    found = Symptom(*marker.args)
    yield found
    assert found.compared, "the test never compared what it provoked with its symptom"


@pytest.fixture(autouse=True)
def no_connections_left() -> Iterator[None]:
    """Close what a test with a database leaves open in asgiref's thread.

    Channels looks at the thread's connections before and after each event; where the next test
    has no database, pytest-django refuses that.
    """
    yield
    SyncToAsync.single_thread_executor.submit(forget_connections).result(30.0)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.EmbeddedServer]:
    """One nats-server per test process. Do not stop it: use `own_server` for that."""
    store = tmp_path_factory.mktemp("nats")
    with embedded.EmbeddedServer(store, sync_interval=SYNC_INTERVAL) as server:
        yield server
        runtime.stop_background()  # or it asks for the server until the process ends


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[embedded.EmbeddedServer]:
    """A nats-server for this test alone: it may be stopped, killed, paused and restarted."""
    with embedded.EmbeddedServer(tmp_path / "nats", sync_interval=SYNC_INTERVAL) as server:
        yield server


@pytest.fixture(scope="module")
def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nats-servers for one module; a test that kills one starts it again."""
    store = tmp_path_factory.mktemp("cluster")
    with Cluster(store, sync_interval=SYNC_INTERVAL) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _whole_cluster(request: pytest.FixtureRequest) -> None:
    """Let a test begin when each node of `nats_cluster` runs, whatever the test before did."""
    if "nats_cluster" in request.fixturenames:
        request.getfixturevalue("nats_cluster").start(60.0)


@pytest.fixture
def prefix() -> str:
    """A subject prefix that no other test uses."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def nats_settings(settings: Any, nats_server: embedded.EmbeddedServer, prefix: str) -> Any:
    """Settings that use `nats_server` with a prefix of the test's own."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = nats_server.url
    settings.WSGATEWAY_PREFIX = prefix
    return settings


@pytest.fixture
async def broker(nats_settings: Any) -> AsyncIterator[NatsBroker]:
    """A broker in the test's loop, as the settings say, that is ready."""
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    yield broker
    await broker.close()


@pytest.fixture
def free_port() -> int:
    """A port that nobody uses."""
    return embedded.free_port()


@pytest.fixture
def gateway_factory(
    tmp_path: Path, nats_server: embedded.EmbeddedServer, prefix: str
) -> Iterator[Callable[..., Gateway]]:
    """Make and start gateways: ``gateway_factory(server="uvicorn", WSGATEWAY_WINDOW="4")``.

    Keyword arguments in capitals go into the environment. All of one test share a prefix. No
    database is migrated: cookies and tokens identify clients.
    """
    gateways: list[Gateway] = []

    def make(
        server: str = "daphne",
        port: int | None = None,
        application: str = "project.asgi:application",
        **env: str,
    ) -> Gateway:
        values = {
            "NATS_BROKER_URL": nats_server.url,
            "WSGATEWAY_PREFIX": prefix,
            "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
            **env,
        }
        gateway = Gateway(tmp_path, values, server, port, application)
        gateways.append(gateway)
        return gateway.start()

    yield make
    for gateway in gateways:
        gateway.kill()


@pytest.fixture
def gateway(gateway_factory: Callable[..., Gateway]) -> Gateway:
    """A gateway process on daphne, started for this test."""
    return gateway_factory()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL that runs for the tests. Do not stop it: use `own_postgresql`."""
    with new_postgresql() as server:
        yield server.url


@pytest.fixture
def own_postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL for this test alone: it may be stopped and started again."""
    with new_postgresql() as server:
        yield server


@contextmanager
def new_postgresql() -> Iterator[PostgresServer]:
    """Run a PostgreSQL; it refuses to run as root.

    Its data are not in pytest's temporary folders, which each pytest that starts makes private.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if initdb is None:
        pytest.skip("PostgreSQL's programs (initdb, postgres) are not installed")
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="wsgateway-postgresql-") as folder:
        if user:
            try:
                shutil.chown(folder, user)
            except LookupError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        server = PostgresServer(Path(folder), Path(initdb).resolve(), user)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def nats_command() -> str:
    """NATS' own command line, from PATH or ``.cache/bin``."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), str(ROOT / ".cache/bin")])
    found = shutil.which("nats", path=folders)
    if found is None:
        pytest.skip("NATS' command line is not installed; .ci/run installs it if Go is there")
    return found


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """The URL of a new database in PostgreSQL."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(f"{postgresql_server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    connection.close()
    return f"{postgresql_server}/{name}"
