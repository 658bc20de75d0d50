"""The Procfile as written, with DEBUG off."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client

from tests.support import ROOT, Process, listening, running, site_env, wait_for
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.identity import make_token

SECRET_KEY = secrets.token_urlsafe(50)


def procfile(name: str) -> str:
    lines = (ROOT / "Procfile").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)[name]


def shell(line: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, shell=True, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def production(
    tmp_path_factory: pytest.TempPathFactory, nats_server: EmbeddedServer
) -> dict[str, str]:
    """The environment that docs/how-to/deploy.md asks for."""
    folder = tmp_path_factory.mktemp("production")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return site_env(
        WSGATEWAY_SERVICES="demo,orders",
        PATH=path,
        SECRET_KEY=SECRET_KEY,
        ALLOWED_HOSTS="127.0.0.1",
        DATABASE_URL=f"sqlite:///{folder / 'db.sqlite3'}",
        NATS_BROKER_URL=nats_server.url,
        WSGATEWAY_PREFIX=f"t{secrets.token_hex(6)}",
        STATIC_ROOT=str(folder / "static"),
    )


@pytest.fixture
def web(production: dict[str, str], free_port: int, tmp_path: Path) -> Iterator[Process]:
    env = {**production, "PORT": str(free_port)}
    process = Process(["sh", "-c", f"exec {procfile('web')}"], tmp_path / "web.log", env)
    with running(process):
        process.spawn()
        wait_for(lambda: listening(free_port), 30, "the web line listens")
        yield process


def get(web: Process, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", int(web.env["PORT"]))
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, body


HTTPS = {"X-Forwarded-Proto": "https"}


def test_check_deploy_is_clean(production: dict[str, str]) -> None:
    done = shell("python manage.py check --deploy --fail-level WARNING", production)
    assert done.returncode == 0, done.stderr
    assert "no issues (0 silenced)" in done.stdout


def test_release_line_prepares_database_and_streams(production: dict[str, str]) -> None:
    done = shell(procfile("release"), production)
    assert done.returncode == 0, done.stderr
    assert shell(procfile("release"), production).returncode == 0


def test_pages_want_https_and_probes_do_not(web: Process) -> None:
    status, headers, _ = get(web, "/")
    assert (status, headers["location"]) == (301, f"https://127.0.0.1:{web.env['PORT']}/")
    assert get(web, "/healthz")[0] == 200
    assert get(web, "/readyz")[0::2] == (200, '{"ready": true}')
    status, headers, body = get(web, "/", **HTTPS)
    assert status == 200
    assert "Demo users" not in body
    assert "max-age" in headers["strict-transport-security"]
    assert get(web, "/admin/login/", **HTTPS)[0] == 200
    assert get(web, "/", Host="evil.org", **HTTPS)[0] == 400


def test_static_files_are_served_before_and_after_collectstatic(
    production: dict[str, str], web: Process, free_port: int, tmp_path: Path
) -> None:
    plain = re.findall(r'href="(/static/[^"]+css)"', get(web, "/", **HTTPS)[2])
    assert plain == ["/static/demo/demo.css"]
    assert get(web, plain[0], **HTTPS)[0] == 200
    web.stop()
    done = shell("python manage.py collectstatic --noinput", production)
    assert done.returncode == 0, done.stderr
    web.spawn()
    wait_for(lambda: listening(free_port), 30)
    hashed = re.findall(r'href="(/static/[^"]+css)"', get(web, "/", **HTTPS)[2])
    assert re.fullmatch(r"/static/demo/demo\.[0-9a-f]{12}\.css", hashed[0])
    status, headers, _ = get(web, hashed[0], **HTTPS)
    assert status == 200
    assert "immutable" in headers["cache-control"]
    assert "Warning" not in web.output


async def test_token_opens_a_socket_and_plain_cookies_do_not(web: Process, settings: Any) -> None:
    settings.SECRET_KEY = SECRET_KEY
    url = f"ws://127.0.0.1:{web.env['PORT']}/ws/orders/"
    connect = websockets.asyncio.client.connect
    async with connect(f"{url}?token={make_token('orders', 'ann')}", proxy=None) as socket:
        await socket.send("hello")
        await (await socket.ping())
    cookies = {"Cookie": "user=ann; service=orders"}
    for path, headers in ((url, cookies), (url.replace("/ws/", "/other/"), {})):
        async with connect(path, additional_headers=headers, proxy=None) as socket:
            await asyncio.wait_for(socket.wait_closed(), 10)
            assert socket.close_code == 1008
    web.stop()
    assert "Traceback" not in web.output


def test_no_secret_key_no_start(production: dict[str, str], free_port: int) -> None:
    env = {k: v for k, v in production.items() if k != "SECRET_KEY"} | {"PORT": str(free_port)}
    done = shell(procfile("web"), env)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("cannot start: SECRET_KEY is not set")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"NATS_BROKER_URL": ""}, "NATS_BROKER_URL is empty and DEBUG is off; set NATS_BROKER_URL"),
        (
            {"NATS_BROKER_URL": "redis://127.0.0.1:6379"},
            "NATS_BROKER_URL has an entry that is not the URL of a NATS server: scheme 'redis'",
        ),
        ({"WSGATEWAY_WINDOW": "0"}, "WSGATEWAY_WINDOW is 0, but must be 1 or more"),
        ({"WSGATEWAY_IDENTITY": "mysite.Own"}, "WSGATEWAY_IDENTITY names 'mysite.Own': No module"),
    ],
)
@pytest.mark.parametrize("server", ["daphne -p", "uvicorn --port"])
def test_settings_that_no_socket_can_use_no_start(
    production: dict[str, str], free_port: int, server: str, env: dict[str, str], text: str
) -> None:
    """The server started, and every socket ended in HTTP 500 and a traceback."""
    command = f"python -m {server} {free_port} project.asgi:application"
    done = shell(command, {**production, **env})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"cannot start: {text}")
    assert "Traceback" not in done.stderr


def test_bad_value_in_the_environment_no_start(production: dict[str, str], free_port: int) -> None:
    env = {**production, "PORT": str(free_port), "WSGATEWAY_REPLICAS": "three"}
    done = shell(procfile("web"), env)
    assert done.returncode == 1
    want = "cannot start: WSGATEWAY_REPLICAS is 'three' in the environment, but must be of type int"
    assert done.stderr.splitlines()[-1] == want


@pytest.mark.parametrize("command", ["check", "runserver", "publish a b c"])
def test_without_debug_the_site_is_a_production_site(
    production: dict[str, str], command: str
) -> None:
    """manage.py turned DEBUG on, and so plain cookies, where no SECRET_KEY was set."""
    env = {k: v for k, v in production.items() if k != "SECRET_KEY"}
    done = shell(f"python manage.py {command}", env)
    assert done.returncode == 1
    assert done.stderr.startswith("cannot start: SECRET_KEY is not set in the environment; set it")
    assert "DEBUG=1" in done.stderr
    assert "Traceback" not in done.stderr


def test_rungateway_with_a_secret_key_creates_no_demo_users(
    production: dict[str, str], free_port: int, tmp_path: Path
) -> None:
    path = tmp_path / "site.sqlite3"
    env = {**production, "DATABASE_URL": f"sqlite:///{path}", "HTTPS": "0"}
    command = [sys.executable, "manage.py", "rungateway", "--demo", "--port", str(free_port)]
    process = Process(command, tmp_path / "site.log", env)
    with running(process):
        process.spawn()
        process.wait_for_line("Ctrl-C ends it", 40)
    assert "none: DEBUG is off" in process.output
    with sqlite3.connect(path) as database:
        assert database.execute("select count(*) from auth_user").fetchone() == (0,)
    database.close()


def test_release_line_refuses_a_database_that_has_demo_users(
    production: dict[str, str], tmp_path: Path
) -> None:
    """`make run` leaves admin/admin behind, and the same database served production."""
    env = {**production, "DATABASE_URL": f"sqlite:///{tmp_path / 'site.sqlite3'}"}
    assert shell("python manage.py migrate -v0", env).returncode == 0
    make = "from project.demo.users import create_demo_users; create_demo_users()"
    assert shell(f'python manage.py shell --no-imports -v0 -c "{make}"', env).returncode == 0
    done = shell(procfile("release"), env)
    assert done.returncode == 1
    assert "demo.E001" in done.stderr
    assert "admin, ann, bob" in done.stderr
